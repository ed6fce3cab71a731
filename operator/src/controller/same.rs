//! Whether an object that the API server has is still what was applied.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

/// Whether everything that `wanted` says is so in `found`, which may say more: defaults,
/// and fields of others.
///
/// Lists of objects with a name of their own are compared by that name, as server-side
/// apply merges them; other lists as a whole. What must not say more either is what
/// server-side apply replaces as a whole and the API server adds nothing to, like selectors,
/// and what takes another meaning by it, like a volume with another source. Amounts are
/// compared as amounts, because the API server rewrites them (`1000m` becomes `1`).
pub fn covers(wanted: &Value, found: &Value) -> bool {
    field("", "", wanted, found)
}

fn field(parent: &str, name: &str, wanted: &Value, found: &Value) -> bool {
    if is_whole(name) {
        return equal(parent, name, wanted, found);
    }
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().all(|(child, wanted)| match found.get(child) {
                Some(found) => field(name, child, wanted, found),
                None => is_empty(name, child, wanted),
            })
        }
        (Value::Array(wanted), Value::Array(found)) => match merge_keys(name, wanted) {
            Some(keys) => wanted.iter().all(|wanted| {
                let is_it = |found: &&Value| keys.iter().all(|key| wanted[*key] == found[*key]);
                let covers = |found| field(parent, name, wanted, found) && is_no_other(name, wanted, found);
                found.iter().filter(is_it).any(covers)
            }),
            None => {
                wanted.len() == found.len()
                    && wanted.iter().zip(found).all(|(wanted, found)| field(parent, name, wanted, found))
            }
        },
        _ => wanted == found || is_amount(parent, name) && is_same_amount(wanted, found),
    }
}

/// What the API server leaves out, and what means the same when it is not there.
fn is_empty(parent: &str, name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => {
            !means_something_empty(name) && map.iter().all(|(child, value)| is_empty(name, child, value))
        }
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty() && !is_map(parent),
        Value::Bool(holds) => !holds && name == "readOnly",
        Value::Number(_) => false,
    }
}

/// Whether a field says something by being there: an empty selector selects everything, and none
/// nothing, or only what is near.
fn means_something_empty(name: &str) -> bool {
    matches!(name, "emptyDir" | "labelSelector" | "podSelector" | "namespaceSelector")
}

/// Whether the names in a field are the user's. Empty values are kept there, and mean something:
/// that a label is there.
fn is_map(name: &str) -> bool {
    matches!(name, "labels" | "annotations" | "matchLabels" | "nodeSelector" | "selector")
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
fn equal(parent: &str, name: &str, wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().all(|(child, wanted)| match found.get(child) {
                Some(found) => equal(name, child, wanted, found),
                None => is_empty(name, child, wanted),
            }) && found
                .iter()
                .all(|(child, found)| wanted.contains_key(child) || is_empty(name, child, found))
        }
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len()
                && wanted.iter().zip(found).all(|(wanted, found)| equal(parent, name, wanted, found))
        }
        // Of an autoscaler's metric; nothing else that is stored as a whole has amounts.
        _ => wanted == found || name == "averageValue" && parent == "target" && is_same_amount(wanted, found),
    }
}

/// Whether an element of a list that others may add fields to is still the same thing: a volume
/// of no other source, a variable of no other value.
fn is_no_other(list: &str, wanted: &Value, found: &Value) -> bool {
    match list {
        "volumes" => {
            let (wanted, found) = (sources(wanted), sources(found));
            // The API server gives a volume without a source an empty folder.
            wanted == found || wanted.is_empty() && found == ["emptyDir"]
        }
        "env" => ["value", "valueFrom"]
            .iter()
            .all(|name| !wanted[*name].is_null() || is_empty(list, name, &found[*name])),
        _ => true,
    }
}

/// What a volume is made of.
fn sources(volume: &Value) -> Vec<&str> {
    let fields = volume.as_object().into_iter().flatten();
    let said = fields.filter(|(name, value)| *name != "name" && !value.is_null());
    said.map(|(name, _)| name.as_str()).collect()
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

/// Whether a field is a quantity, or what is compared is nothing but quantities. What else reads
/// like one, like labels and hashes, can differ and mean the same amount.
fn is_amount(parent: &str, name: &str) -> bool {
    matches!(parent, "" | "requests" | "limits")
        || matches!(name, "sizeLimit" | "divisor" | "tolerance") && !is_map(parent)
}

fn is_same_amount(wanted: &Value, found: &Value) -> bool {
    let amount = |value: &Value| match value {
        Value::String(text) => amount(text),
        Value::Number(number) => amount(&number.to_string()),
        _ => None,
    };
    amount(wanted).is_some_and(|wanted| Some(wanted) == amount(found))
}

/// Whether one amount is more than the other. It is not where one of them is no quantity.
pub fn is_more(one: &Quantity, other: &Quantity) -> bool {
    matches!((amount(&one.0), amount(&other.0)), (Some(one), Some(other)) if one > other)
}

/// As many digits of an amount count. Together with the largest binary suffix they fit.
const DIGITS: usize = 20;

/// An amount in billionths, as Kubernetes' quantities are written. `None` for what is none.
///
/// As Kubernetes does, what is too fine is rounded up, away from zero, and what is too large
/// counts as the largest amount there is.
fn amount(text: &str) -> Option<i128> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (factor, exponent) = scale(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.len() == number.matches('.').count() || fraction.contains('.') {
        return None;
    }
    let digits = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    let (counted, rest) = digits.split_at(digits.len().min(DIGITS));
    let counted: u128 = if counted.is_empty() { 0 } else { counted.parse().ok()? };
    let parts = factor * (counted + u128::from(rest.contains(|digit| digit != '0')));
    // Of ten, from these parts to billionths.
    let power = i64::from(exponent) + 9 + rest.len() as i64 - fraction.len() as i64;
    let ten = u32::try_from(power.unsigned_abs()).ok().and_then(|power| 10u128.checked_pow(power));
    let billionths = match ten {
        _ if parts == 0 => 0,
        Some(ten) if power < 0 => parts.div_ceil(ten),
        None if power < 0 => 1,
        ten => ten.and_then(|ten| parts.checked_mul(ten)).unwrap_or(u128::MAX),
    };
    Some(sign * i128::try_from(billionths).unwrap_or(i128::MAX))
}

/// What a suffix multiplies with: a factor, and a power of ten.
fn scale(suffix: &str) -> Option<(u128, i32)> {
    let binary = |power: u32| Some((1 << power, 0));
    let decimal = |power: i32| Some((1, power));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        // An exponent; `E` alone is a suffix.
        _ => decimal(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    }
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
    fn a_volume_has_one_source_and_no_other() {
        let table = [
            (json!({"emptyDir": {}}), json!({"emptyDir": {}}), true),
            (json!({"emptyDir": {}}), json!({"emptyDir": {"sizeLimit": "1Gi"}}), true),
            (json!({"emptyDir": {"sizeLimit": "1024Mi"}}), json!({"emptyDir": {"sizeLimit": "1Gi"}}), true),
            (json!({"emptyDir": {"medium": ""}}), json!({"emptyDir": {}}), true),
            (json!({"emptyDir": {"medium": ""}}), json!({}), false),
            (json!({"emptyDir": {}}), json!({}), false),
            (json!({"emptyDir": {}}), json!({"emptyDir": null}), false),
            (json!({"emptyDir": {}}), json!({"hostPath": {"path": "/", "type": ""}}), false),
            (json!({"emptyDir": {}}), json!({"persistentVolumeClaim": {"claimName": "x"}}), false),
            (json!({"emptyDir": {}}), json!({"emptyDir": {}, "hostPath": {"path": "/"}}), false),
            (json!({"emptyDir": {}}), json!({"emptyDir": {}, "hostPath": null}), true),
            (json!({}), json!({"emptyDir": {}}), true),
            (json!({}), json!({"hostPath": {"path": "/"}}), false),
            (json!({"configMap": {}}), json!({"emptyDir": {}}), false),
            (
                json!({"configMap": {"name": "x"}}),
                json!({"configMap": {"name": "x", "defaultMode": 420}}),
                true,
            ),
            (
                json!({"secret": {"secretName": "x", "items": [{"key": "a", "path": "b"}]}}),
                json!({"secret": {"secretName": "x", "items": [{"key": "a", "path": "b"}], "defaultMode": 420}}),
                true,
            ),
            (json!({"secret": {"secretName": "x"}}), json!({"configMap": {"name": "x"}}), false),
            (
                json!({"persistentVolumeClaim": {"claimName": "x", "readOnly": false}}),
                json!({"persistentVolumeClaim": {"claimName": "x"}}),
                true,
            ),
        ];
        for (mut wanted, mut found, expected) in table {
            wanted["name"] = json!("a");
            found["name"] = json!("a");
            let (wanted, found) =
                (json!({"volumes": [wanted]}), json!({"volumes": [{"name": "b", "hostPath": {}}, found]}));
            assert_eq!(covers(&wanted, &found), expected, "{wanted} {found}");
        }
    }

    #[test]
    fn a_variable_has_one_value_and_no_other() {
        let table = [
            (json!({"value": ""}), json!({}), true),
            (json!({}), json!({"value": ""}), true),
            (json!({}), json!({"value": "x"}), false),
            (json!({"value": ""}), json!({"valueFrom": {"secretKeyRef": {"key": "x"}}}), false),
            (json!({}), json!({"valueFrom": {"secretKeyRef": {"key": "x"}}}), false),
            (
                json!({"value": "x"}),
                json!({"value": "x", "valueFrom": {"secretKeyRef": {"key": "x"}}}),
                false,
            ),
            (json!({"value": "x"}), json!({"value": "x", "valueFrom": null}), true),
            (json!({"valueFrom": {"secretKeyRef": {"key": "x"}}}), json!({"value": "x"}), false),
            (
                json!({"valueFrom": {"secretKeyRef": {"key": "x"}}}),
                json!({"valueFrom": {"secretKeyRef": {"key": "x"}}, "value": "x"}),
                false,
            ),
            (
                json!({"valueFrom": {"fieldRef": {"fieldPath": "x"}}}),
                json!({"valueFrom": {"fieldRef": {"fieldPath": "x", "apiVersion": "v1"}}}),
                true,
            ),
            (
                json!({"valueFrom": {"resourceFieldRef": {"resource": "x", "divisor": "1024Ki"}}}),
                json!({"valueFrom": {"resourceFieldRef": {"resource": "x", "divisor": "1Mi"}}}),
                true,
            ),
            // No amounts.
            (json!({"value": "1e3"}), json!({"value": "1000"}), false),
        ];
        for (mut wanted, mut found, expected) in table {
            wanted["name"] = json!("a");
            found["name"] = json!("a");
            let (wanted, found) =
                (json!({"env": [wanted]}), json!({"env": [{"name": "b", "value": "x"}, found]}));
            assert_eq!(covers(&wanted, &found), expected, "{wanted} {found}");
        }
    }

    #[test]
    fn an_empty_selector_is_not_none() {
        let from = |peer: &Value| json!({"ingress": [{"from": [peer]}]});
        let spread = |constraint: &Value| {
            let mut constraint = constraint.clone();
            constraint["topologyKey"] = json!("zone");
            json!({"topologySpreadConstraints": [constraint]})
        };
        let term = |term: &Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]});
        let label = json!({"matchLabels": {"a": "b"}});
        let table = [
            (from(&json!({"podSelector": label})), from(&json!({"podSelector": label})), true),
            (
                from(&json!({"podSelector": label})),
                from(&json!({"podSelector": label, "namespaceSelector": {}})),
                false,
            ),
            (
                from(&json!({"podSelector": label, "namespaceSelector": {}})),
                from(&json!({"podSelector": label})),
                false,
            ),
            (from(&json!({"podSelector": {}})), from(&json!({"podSelector": {}})), true),
            (from(&json!({"podSelector": {}})), from(&json!({"namespaceSelector": {}})), false),
            (from(&json!({"podSelector": {"matchLabels": {}}})), from(&json!({"podSelector": {}})), true),
            (
                from(&json!({"podSelector": {}})),
                from(&json!({"podSelector": {"matchLabels": {}, "matchExpressions": []}})),
                true,
            ),
            (from(&json!({"podSelector": {"matchLabels": {}}})), from(&json!({})), false),
            (from(&json!({"podSelector": {}})), from(&json!({"podSelector": label})), false),
            (json!({"podSelector": {}}), json!({"podSelector": {}}), true),
            (json!({"podSelector": {}}), json!({}), false),
            (json!({}), json!({"podSelector": {}}), true),
            (spread(&json!({"labelSelector": {}})), spread(&json!({"labelSelector": {}})), true),
            (spread(&json!({"labelSelector": {}})), spread(&json!({})), false),
            (
                term(&json!({"labelSelector": label})),
                term(&json!({"labelSelector": label, "namespaceSelector": {}})),
                false,
            ),
            (
                term(&json!({"labelSelector": {}, "namespaces": []})),
                term(&json!({"labelSelector": {}})),
                true,
            ),
            (term(&json!({"labelSelector": {}})), term(&json!({})), false),
            (json!({"podAffinity": {}}), json!({}), true),
        ];
        for (wanted, found, expected) in table {
            assert_eq!(covers(&wanted, &found), expected, "{wanted} {found}");
        }
    }

    #[test]
    fn an_empty_label_is_not_none() {
        for map in ["labels", "annotations", "nodeSelector", "selector", "matchLabels"] {
            let of = |labels: &Value| json!({"a": {map: labels}});
            assert!(covers(&of(&json!({"x": ""})), &of(&json!({"x": ""}))), "{map}");
            assert!(!covers(&of(&json!({"x": ""})), &of(&json!({"y": "z"}))), "{map}");
            assert!(!covers(&of(&json!({"x": ""})), &json!({"a": {}})), "{map}");
            assert!(covers(&of(&json!({})), &json!({"a": {}})), "{map}");
            assert!(!covers(&of(&json!({"limits": "1e3"})), &of(&json!({"limits": "1000"}))), "{map}");
        }
        for map in ["nodeSelector", "selector"] {
            let (wanted, found) = (json!({map: {"x": "y"}}), json!({map: {"x": "y", "z": ""}}));
            assert!(!covers(&wanted, &found), "{map}");
        }
    }

    #[test]
    fn the_target_of_a_metric_is_an_amount_and_the_rest_is_as_it_was_written() {
        let metric = |value: Value| {
            json!({"metrics": [{
                "type": "Pods",
                "pods": {
                    "metric": {"name": "a", "selector": {"matchLabels": {"averageValue": value}}},
                    "target": {"type": "AverageValue", "averageValue": value},
                },
            }]})
        };
        let target = |value: &str| {
            let mut metric = metric(json!("1"));
            metric["metrics"][0]["pods"]["target"]["averageValue"] = json!(value);
            metric
        };
        assert!(covers(&target("4000"), &target("4k")));
        assert!(covers(&target("10000000"), &target("10M")));
        assert!(!covers(&target("4000"), &target("4M")));
        assert!(!covers(&metric(json!("4000")), &metric(json!("4k"))), "a label is none");
        let mut more = target("4k");
        more["metrics"][0]["pods"]["target"]["averageUtilization"] = json!(1);
        assert!(!covers(&target("4000"), &more));
        more = target("4k");
        more["metrics"].as_array_mut().unwrap().push(json!({"type": "Resource"}));
        assert!(!covers(&target("4000"), &more));
    }

    #[test]
    fn what_only_looks_like_an_amount_is_none() {
        let (one, other) = ("12345e67", "12346e67");
        let fields: [fn(&str) -> Value; 4] = [
            |text| json!({"metadata": {"annotations": {"sizeLimit": text}}}),
            |text| json!({"spec": {"nodeSelector": {"a": text}}}),
            |text| json!({"containers": [{"name": "a", "args": [text]}]}),
            |text| json!({"containers": [{"name": "a", "image": text}]}),
        ];
        for field in fields {
            assert!(covers(&field(one), &field(one)), "{}", field(one));
            assert!(!covers(&field(one), &field(other)), "{}", field(one));
            assert!(!covers(&field("1e3"), &field("1000")), "{}", field(one));
        }
    }

    #[test]
    fn amounts_are_what_they_mean() {
        let of = |amount: &str| json!({"requests": {"cpu": amount}});
        for (a, b) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("+5", "5"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1k", "1000"),
            ("-0.5", "-500m"),
            ("1e3", "1000"),
            ("1E3", "1k"),
            ("1.5e3", "1500"),
            ("1500", "1.5e3"),
            ("1e+3", "1000"),
            ("1e-3", "1m"),
            ("-1e3", "-1k"),
            ("1E", "1e18"),
            ("1Ei", "1152921504606846976"),
            ("1.2345678901", "1234567891n"),
            ("-1e-99", "-1n"),
            ("0e999", "0"),
            ("0.0000000000000000000000000000001e31", "1"),
        ] {
            assert!(covers(&of(a), &of(b)), "{a} {b}");
        }
        assert!(covers(&json!({"cpu": "1.5e3"}), &json!({"cpu": "1500"})));
        assert!(covers(&json!({"cpu": 1}), &json!({"cpu": "1"})));
        assert!(covers(&json!("1000m"), &json!("1")));
        assert!(covers(&json!({"tolerance": "0.1"}), &json!({"tolerance": "100m"})));
        for (a, b) in [
            ("1", "1m"),
            ("1G", "1Gi"),
            ("1E", "1Ei"),
            ("a", "b"),
            ("", "1"),
            ("", "0"),
            (".", "0"),
            ("e3", "0"),
            ("1e3", "1e4"),
            ("1e", "1"),
            ("1e3", "1e3Gi"),
            ("1e1.5", "1e1"),
            ("1.2.3", "1.2"),
            ("--1", "1"),
            ("1K", "1k"),
        ] {
            assert!(!covers(&of(a), &of(b)), "{a} {b}");
        }
    }

    #[test]
    fn one_amount_is_more() {
        let digits = "1234567890".repeat(4);
        let fine = format!("0.{digits}{digits}Ei");
        let table = [
            ("20Gi", "10e9", true),
            ("10e9", "20Gi", false),
            ("64e9", "1Gi", true),
            ("1Gi", "64e9", false),
            ("1E", "1e17", true),
            ("1Ei", "1E", true),
            ("1", "1", false),
            ("1", "1e0", false),
            ("1", "-1e999", true),
            ("1e-999", "0", true),
            ("1e-999", "1n", false),
            ("1e999", "1Gi", true),
            ("1Gi", "1e999", false),
            ("1e2147483647", "9e-2147483648", true),
            ("9e-2147483648", "1e2147483647", false),
            // The largest amount.
            ("1e999", "1e998", false),
            (&digits, "999Ei", true),
            ("999Ei", &digits, false),
            ("1Ei", &fine, true),
            (&fine, "0.1Ei", true),
            // What is no amount is neither more nor less.
            ("1e9999999999", "1", false),
            ("1", "1e9999999999", false),
            ("x", "1", false),
            ("1", "x", false),
            ("1", "", false),
            ("é", "1", false),
            ("1é", "0", false),
        ];
        for (one, other, expected) in table {
            let quantity = |text: &str| Quantity(text.into());
            assert_eq!(is_more(&quantity(one), &quantity(other)), expected, "{one} {other}");
        }
    }
}
