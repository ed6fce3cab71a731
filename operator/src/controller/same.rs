//! Whether an object that the API server has is still what was applied.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

/// Whether everything that `wanted` says is so in `found`, which may say more: defaults,
/// and fields of others.
///
/// Lists of objects with a name of their own are compared by that name, as server-side
/// apply merges them; other lists as a whole. What server-side apply replaces as a whole
/// and the API server adds nothing to, like selectors, must not say more either. Amounts are
/// compared as amounts, because the API server rewrites them (`1000m` becomes `1`).
pub fn covers(wanted: &Value, found: &Value) -> bool {
    field("", wanted, found)
}

fn field(name: &str, wanted: &Value, found: &Value) -> bool {
    if is_whole(name) {
        return equal(wanted, found);
    }
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().all(|(name, wanted)| match found.get(name) {
                Some(found) => field(name, wanted, found),
                None => is_empty(name, wanted),
            })
        }
        (Value::Array(wanted), Value::Array(found)) => match merge_keys(name, wanted) {
            Some(keys) => wanted.iter().all(|wanted| {
                let is_it = |found: &&Value| keys.iter().all(|key| wanted[*key] == found[*key]);
                found.iter().filter(is_it).any(|found| field("", wanted, found))
            }),
            None => {
                wanted.len() == found.len()
                    && wanted.iter().zip(found).all(|(wanted, found)| field("", wanted, found))
            }
        },
        _ => wanted == found || is_same_amount(wanted, found),
    }
}

/// What the API server leaves out. Of truth values only those that mean the same when they are
/// not there.
fn is_empty(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.iter().all(|(name, value)| is_empty(name, value)),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(holds) => !holds && name == "readOnly",
        Value::Number(_) => false,
    }
}

/// Whether a field belongs to one manager as a whole, down to the last leaf, and is stored
/// as it was written.
fn is_whole(name: &str) -> bool {
    matches!(
        name,
        "selector"
            | "labelSelector"
            | "podSelector"
            | "namespaceSelector"
            | "nodeSelector"
            | "tolerations"
            | "requiredDuringSchedulingIgnoredDuringExecution"
            | "preferredDuringSchedulingIgnoredDuringExecution"
            | "metrics"
            | "scaleTargetRef"
            | "ingress"
    )
}

/// Whether both say the same, but for what is empty.
fn equal(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().all(|(name, wanted)| match found.get(name) {
                Some(found) => equal(wanted, found),
                None => is_empty(name, wanted),
            }) && found.iter().all(|(name, found)| wanted.contains_key(name) || is_empty(name, found))
        }
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len()
                && wanted.iter().zip(found).all(|(wanted, found)| equal(wanted, found))
        }
        _ => wanted == found || is_same_amount(wanted, found),
    }
}

/// By which fields the elements of a list are merged, where others may add some.
fn merge_keys(list: &str, elements: &[Value]) -> Option<&'static [&'static str]> {
    match list {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => Some(&["name"]),
        "volumeMounts" => Some(&["mountPath"]),
        "ownerReferences" => Some(&["uid"]),
        "topologySpreadConstraints" => Some(&["topologyKey", "whenUnsatisfiable"]),
        // Of containers, and of Services.
        "ports" if elements.iter().all(|port| port["containerPort"].is_number()) => {
            Some(&["containerPort", "protocol"])
        }
        "ports" if elements.iter().all(|port| !port["targetPort"].is_null()) => Some(&["port", "protocol"]),
        _ => None,
    }
}

fn is_same_amount(wanted: &Value, found: &Value) -> bool {
    let amount = |value: &Value| match value {
        Value::String(text) => amount(text),
        Value::Number(number) => amount(&number.to_string()),
        _ => None,
    };
    amount(wanted).is_some_and(|wanted| Some(wanted) == amount(found))
}

/// One, in billionths.
const NANO: i128 = 1_000_000_000;

/// Whether one amount is more than the other.
pub fn is_more(one: &Quantity, other: &Quantity) -> bool {
    matches!((amount(&one.0), amount(&other.0)), (Some(one), Some(other)) if one > other)
}

/// An amount in billionths, as Kubernetes' quantities are written.
fn amount(text: &str) -> Option<i128> {
    let digits =
        text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '-' | '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let scale = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => NANO,
        "k" => 1_000 * NANO,
        "M" => 1_000_000 * NANO,
        "G" => NANO * NANO,
        "T" => 1_000 * NANO * NANO,
        "P" => 1_000_000 * NANO * NANO,
        "E" => NANO * NANO * NANO,
        "Ki" => NANO << 10,
        "Mi" => NANO << 20,
        "Gi" => NANO << 30,
        "Ti" => NANO << 40,
        "Pi" => NANO << 50,
        "Ei" => NANO << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let parts = u32::try_from(fraction.len()).ok().filter(|&digits| digits <= 9)?;
    let fraction: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let fraction = fraction.checked_mul(scale)? / 10i128.pow(parts);
    whole.checked_mul(scale)?.checked_add(if number.starts_with('-') { -fraction } else { fraction })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_add_does_not_matter_and_what_they_change_does() {
        let table = [
            (json!({"a": 1}), json!({"a": 1, "b": 2}), true),
            (json!({"a": 1}), json!({"a": 2}), false),
            (json!({"a": {"b": {}}}), json!({}), true),
            (json!({"a": "x"}), json!({}), false),
            (json!({"env": [{"name": "a", "value": ""}]}), json!({"env": [{"name": "a"}]}), true),
            (
                json!({"env": [{"name": "a", "value": ""}]}),
                json!({"env": [{"name": "a", "value": "b"}]}),
                false,
            ),
            (json!({"readOnly": false}), json!({}), true),
            (json!({"automountServiceAccountToken": false}), json!({}), false),
            (
                json!({"containers": [{"name": "a", "x": 1}]}),
                json!({"containers": [{"name": "s"}, {"name": "a", "x": 1, "y": 2}]}),
                true,
            ),
            (
                json!({"containers": [{"name": "a", "x": 1}]}),
                json!({"containers": [{"name": "a", "x": 2}]}),
                false,
            ),
            (json!({"args": ["a"]}), json!({"args": ["a", "b"]}), false),
            (
                json!({"tolerations": [{"key": "a"}]}),
                json!({"tolerations": [{"key": "a", "effect": "x"}]}),
                false,
            ),
            (json!({"items": [{"key": "a"}]}), json!({"items": [{"key": "a", "mode": 1}]}), true),
            (json!({"selector": {"a": "b"}}), json!({"selector": {"a": "b", "c": "d"}}), false),
            (
                json!({"selector": {"matchLabels": {"a": "b"}}}),
                json!({"selector": {"matchLabels": {"a": "b"}, "matchExpressions": []}}),
                true,
            ),
            (
                json!({"ports": [{"containerPort": 1, "protocol": "TCP"}]}),
                json!({"ports": [{"containerPort": 2, "protocol": "TCP"}, {"containerPort": 1, "protocol": "TCP"}]}),
                true,
            ),
            (
                json!({"ports": [{"port": 1, "targetPort": "a"}]}),
                json!({"ports": [{"port": 1, "targetPort": "a", "nodePort": 3}, {"port": 2, "targetPort": "a"}]}),
                true,
            ),
            (json!({"ports": [{"port": 1}]}), json!({"ports": [{"port": 1}, {"port": 2}]}), false),
            (
                json!({"tolerations": [{"key": "a"}]}),
                json!({"tolerations": [{"key": "a"}, {"key": "b"}]}),
                false,
            ),
        ];
        for (wanted, found, expected) in table {
            assert_eq!(covers(&wanted, &found), expected, "{wanted} {found}");
        }
    }

    #[test]
    fn amounts_are_what_they_mean() {
        for (a, b) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1k", "1000"),
            ("-0.5", "-500m"),
        ] {
            assert!(covers(&json!({"cpu": a}), &json!({"cpu": b})), "{a} {b}");
        }
        assert!(covers(&json!({"cpu": 1}), &json!({"cpu": "1"})));
        for (a, b) in [("1", "1m"), ("1G", "1Gi"), ("a", "b"), ("", "1"), ("1e3", "1e4")] {
            assert!(!covers(&json!({"cpu": a}), &json!({"cpu": b})), "{a} {b}");
        }
    }
}
