//! Which pods there should be: of the files that are here, or of those that serve already.

use super::pod;
use super::records::{self, Template};
use crate::controller::fetched::{self, Here, State};
use crate::controller::observe::Observed;
use crate::controller::space::{self, Spaces};
use crate::controller::validate::ValidModel;

/// Which pods there should be, and why.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// The pods; none before the first.
    pub template: Option<Template>,
    /// Whether they are of what the spec asks for now, but for a space that is refused.
    pub is_current: bool,
    /// Whether this version of the operator would make other pods of the same spec.
    pub update_available: bool,
    /// The vector spaces that are at stake.
    pub spaces: Spaces,
}

/// Which pods there should be.
pub(super) fn decide(model: &ValidModel, files: &State, observed: &Observed) -> Decision {
    let recorded = records::newest(observed);
    // While a model is paused its pods are of the last template, whatever is decided upon.
    let runs = recorded.clone().filter(|_| model.paused);
    let mut decision = match files {
        State::Here(here) => of_files(model, here, recorded, observed),
        _ => Decision { template: recorded, ..Decision::default() },
    };
    let serving = runs.as_ref().or(decision.template.as_ref());
    decision.spaces.served = serving.and_then(|template| space_of(template, observed));
    decision.spaces.before = serving.and_then(|template| template.space_before.clone());
    decision.spaces.expected.clone_from(&model.expected_space);
    decision
}

fn of_files(model: &ValidModel, here: &Here, recorded: Option<Template>, observed: &Observed) -> Decision {
    let mut fresh = pod::template(model, here);
    let Some(recorded) = recorded else {
        let refused = fresh.space().filter(|space| is_refused(model, space, None));
        let template = Some(fresh).filter(|_| refused.is_none());
        return Decision {
            is_current: template.is_some(),
            template,
            spaces: Spaces { refused, ..Spaces::default() },
            ..Decision::default()
        };
    };
    if recorded.key == fresh.key {
        return as_it_is(recorded, &fresh);
    }
    let served = space_of(&recorded, observed);
    let refused = fresh.space().filter(|space| is_refused(model, space, served.as_deref()));
    if refused.is_some() {
        let mut decision = with_its_files(model, recorded);
        decision.spaces.refused = refused;
        return decision;
    }
    let before = served.or_else(|| recorded.space_before.clone());
    fresh.space_before = if before == fresh.space() { recorded.space_before } else { before };
    Decision { template: Some(fresh), is_current: true, ..Decision::default() }
}

/// The same wish: the pods stay as they are, whatever this version would make of it. What was told
/// of their files only later is recorded, to outlive who told it: pods that fetch for themselves, or
/// a fetch that was done again.
fn as_it_is(mut recorded: Template, fresh: &Template) -> Decision {
    // Another name of the same commit.
    recorded.revision.clone_from(&fresh.revision);
    if recorded.space().is_none() && fresh.space().is_some() {
        recorded.summary.clone_from(&fresh.summary);
    }
    Decision {
        update_available: recorded.pods != fresh.pods,
        template: Some(recorded),
        is_current: true,
        ..Decision::default()
    }
}

/// What the spec says beside the files that are refused is carried out with those that serve; not
/// where these are not in the cache of its source, or it asks for another revision or other prompts.
fn with_its_files(model: &ValidModel, recorded: Template) -> Decision {
    let here = Here { key: recorded.fetch.clone(), summary: recorded.summary.clone() };
    let mut again = pod::template(model, &here);
    let has_the_files = again.cached_at.is_some() && again.cached_at == recorded.cached_at;
    // Older versions of the operator did not record it.
    let same_revision = recorded.revision.is_none() || again.revision == recorded.revision;
    let same_prompts = again.prompts == recorded.prompts && again.default_prompt == recorded.default_prompt;
    if !has_the_files || !same_revision || !same_prompts {
        return Decision { template: Some(recorded), ..Decision::default() };
    }
    if again.key == recorded.key {
        return as_it_is(recorded, &again);
    }
    again.space_before = recorded.space_before;
    Decision { template: Some(again), is_current: true, ..Decision::default() }
}

fn is_refused(model: &ValidModel, wanted: &str, served: Option<&str>) -> bool {
    space::is_refused(model.space_change_policy, Some(wanted), served, model.expected_space.as_deref())
}

/// The space of these pods. Those that fetch for themselves tell more than was known when they
/// were decided upon.
fn space_of(template: &Template, observed: &Observed) -> Option<String> {
    template.space().or_else(|| {
        let learned = fetched::learned(&observed.pods, &template.summary.commit)?;
        template.space_with(&learned)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Config;
    use crate::controller::build::{names, of_kind};
    use crate::controller::diagnose::tests::observed;
    use crate::controller::fetched::Summary;
    use crate::controller::object::Kind;
    use crate::controller::validate::validate;
    use crate::crd::EmbeddingModel;

    fn model(more: &Value, expected: Option<&str>) -> ValidModel {
        let mut spec = json!({"source": {"huggingFace": {"repo": "org/name"}}});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let annotations: Value = expected.map_or(json!({}), |space| json!({names::SPACE_ANNOTATION: space}));
        let model: EmbeddingModel = serde_json::from_value(json!({
            "apiVersion": "embeddings.kagent.dev/v1alpha1",
            "kind": "EmbeddingModel",
            "metadata": {"name": "m", "namespace": "default", "uid": "u", "annotations": annotations},
            "spec": spec,
        }))
        .unwrap();
        validate(&model, &Observed::default(), &Config::for_tests()).unwrap()
    }

    /// Files with a fingerprint of so many digits.
    fn summary(commit: &str, files: &str) -> Summary {
        Summary {
            commit: commit.to_owned(),
            dimensions: Some(8),
            normalizes: Some(true),
            space_files: Some(files.repeat(64)),
            prompts: Some([].into()),
            ..Summary::default()
        }
    }

    fn here(commit: &str, files: &str) -> State {
        State::Here(Here { key: Some(format!("fetch-{commit}")), summary: summary(commit, files) })
    }

    fn space_of_files(files: &str) -> Option<String> {
        space::of(&summary("", files), &[].into(), None)
    }

    /// What is seen of pods that were decided upon.
    fn serving(template: &Template) -> Observed {
        let record = json!({
            "metadata": {"name": "r", "labels": {names::RECORD_LABEL: "template"}},
            "revision": 1,
            "data": template,
        });
        let mut observed = Observed::default();
        let record = of_kind(Kind::ControllerRevision, &record);
        observed.children.insert((Kind::ControllerRevision, "r".into()), record.value);
        observed
    }

    fn first(more: &Value, files: &str) -> Template {
        decide(&model(more, None), &here("a", files), &Observed::default()).template.unwrap()
    }

    fn arguments(template: &Template) -> String {
        template.pods.spec.as_ref().unwrap().containers[0].args.as_ref().unwrap().join(" ")
    }

    const REFUSE: &str = "Refuse";

    #[test]
    fn another_space_is_rolled_out_and_the_one_before_remembered() {
        let a = first(&json!({}), "a");
        assert_eq!((a.space(), a.space_before.clone()), (space_of_files("a"), None));
        let plain = model(&json!({}), None);
        let b = decide(&plain, &here("b", "b"), &serving(&a));
        assert_eq!(
            b.spaces,
            Spaces { served: space_of_files("b"), before: space_of_files("a"), ..Spaces::default() }
        );
        assert!(b.is_current && arguments(b.template.as_ref().unwrap()).contains("org/name@b"));

        // What does not change it leaves that known, and so does what is not known itself.
        let b = b.template.unwrap();
        let larger = model(&json!({"resources": {"limits": {"memory": "2Gi"}}}), None);
        for files in [here("b", "b"), here("c", "b")] {
            let next = decide(&larger, &files, &serving(&b)).template.unwrap();
            assert_eq!((next.space(), next.space_before), (space_of_files("b"), space_of_files("a")));
        }
        let mut untold = summary("c", "c");
        untold.space_files = None;
        let untold = State::Here(Here { key: None, summary: untold });
        let next = decide(&plain, &untold, &serving(&b)).template.unwrap();
        assert_eq!((next.space(), next.space_before.clone()), (None, space_of_files("b")));
        let known = decide(&plain, &here("d", "d"), &serving(&next)).template.unwrap();
        assert_eq!(known.space_before, space_of_files("b"));
    }

    #[test]
    fn prompts_of_the_spec_make_another_space() {
        let a = first(&json!({}), "a");
        let prompted = json!({"inference": {"prompts": {"query": "q: $(X) "}, "defaultPrompt": "query"}});
        let decision = decide(&model(&prompted, None), &here("a", "a"), &serving(&a));
        let prompts = [("query".to_owned(), "q: $(X) ".to_owned())].into();
        assert_eq!(decision.spaces.served, space::of(&summary("a", "a"), &prompts, Some("query")));
        assert_eq!(decision.spaces.before, a.space());
        let arguments = arguments(&decision.template.unwrap());
        assert!(arguments.contains("--prompt query=q: $$(X)  --default-prompt query"), "{arguments}");
    }

    #[test]
    fn files_that_are_refused_leave_those_that_serve_and_the_rest_of_the_spec_is_carried_out() {
        let refuse = json!({"spaceChangePolicy": REFUSE});
        let a = first(&refuse, "a");
        let decision = decide(&model(&refuse, None), &here("b", "b"), &serving(&a));
        assert_eq!((decision.template, decision.is_current), (Some(a.clone()), true));
        let refused = Spaces { served: a.space(), refused: space_of_files("b"), ..Spaces::default() };
        assert_eq!(decision.spaces, refused);

        let larger = json!({"spaceChangePolicy": REFUSE, "startupTimeoutSeconds": 77});
        let decision = decide(&model(&larger, None), &here("b", "b"), &serving(&a));
        assert_eq!((decision.spaces, decision.is_current), (refused, true));
        let template = decision.template.unwrap();
        assert_eq!(
            (template.startup_seconds, &template.summary, &template.fetch),
            (77, &a.summary, &a.fetch)
        );
        assert!(arguments(&template).contains("org/name@a"));

        // Another commit with the same files.
        let decision = decide(&model(&refuse, None), &here("b", "a"), &serving(&a));
        assert!(decision.spaces.refused.is_none());
        assert!(arguments(&decision.template.unwrap()).contains("org/name@b"));
    }

    #[test]
    fn a_refusal_ends_with_the_files_before_and_with_the_policy() {
        let refuse = model(&json!({"spaceChangePolicy": REFUSE}), None);
        let a = first(&json!({}), "a");
        assert!(decide(&refuse, &here("b", "b"), &serving(&a)).spaces.refused.is_some());
        let back = decide(&refuse, &here("a", "a"), &serving(&a));
        assert_eq!((back.template, back.is_current), (Some(a.clone()), true));
        assert_eq!(back.spaces, Spaces { served: a.space(), ..Spaces::default() });
        let allowed = decide(&model(&json!({}), None), &here("b", "b"), &serving(&a));
        let (served, before) = (space_of_files("b"), space_of_files("a"));
        assert_eq!(allowed.spaces, Spaces { served, before, ..Spaces::default() });
        assert!(arguments(&allowed.template.unwrap()).contains("org/name@b"));
    }

    #[test]
    fn a_record_without_a_space_learns_it_when_the_same_files_are_fetched_again() {
        let refuse = model(&json!({"spaceChangePolicy": REFUSE}), None);
        let older = Summary { space_files: None, normalizes: None, prompts: None, ..summary("a", "a") };
        let older = State::Here(Here { key: Some("fetch-older".into()), summary: older });
        let old = decide(&refuse, &older, &Observed::default()).template.unwrap();
        assert_eq!(decide(&refuse, &older, &serving(&old)).spaces, Spaces::default());
        let known = decide(&refuse, &here("a", "a"), &serving(&old));
        assert_eq!(known.spaces, Spaces { served: space_of_files("a"), ..Spaces::default() });
        assert!(known.is_current && !known.update_available);
        let known = known.template.unwrap();
        assert_eq!((&known.pods, &known.key, known.space()), (&old.pods, &old.key, space_of_files("a")));
        assert!(decide(&refuse, &here("b", "b"), &serving(&known)).spaces.refused.is_some());
    }

    #[test]
    fn a_source_or_prompts_that_are_refused_are_not_carried_out() {
        // What came while it was allowed, and was not there yet when it no longer was.
        let a = first(&json!({}), "a");
        for more in [
            json!({"source": {"huggingFace": {"repo": "org/other"}}}),
            json!({"source": {"huggingFace": {"repo": "org/name", "revision": "v2"}}}),
            json!({"inference": {"prompts": {"query": "q: "}}}),
            json!({"source": {"huggingFace": {"repo": "org/name", "revision": "0".repeat(40)}}, "cache": {"ephemeral": true}}),
        ] {
            let mut more = more;
            more["spaceChangePolicy"] = json!(REFUSE);
            let decision = decide(&model(&more, None), &here("b", "b"), &serving(&a));
            assert_eq!((decision.template.as_ref(), decision.is_current), (Some(&a), false), "{more}");
            assert!(decision.spaces.refused.is_some());
        }
        // A revision that stands for the commit that is served is carried out.
        let refuse = |revision: &str| {
            let source = json!({"huggingFace": {"repo": "org/name", "revision": revision}});
            model(&json!({"source": source, "spaceChangePolicy": REFUSE}), None)
        };
        let tagged = decide(&refuse("v1"), &here("a", "a"), &serving(&a));
        assert!(tagged.is_current);
        let tagged = tagged.template.unwrap();
        assert_eq!((&tagged.key, tagged.revision.as_deref()), (&a.key, Some("v1")));
        assert!(decide(&refuse("v1"), &here("b", "b"), &serving(&tagged)).is_current);
        assert!(!decide(&refuse("main"), &here("b", "b"), &serving(&tagged)).is_current);
        let older = Template { revision: None, ..a };
        assert!(decide(&refuse("main"), &here("b", "b"), &serving(&older)).is_current);
    }

    #[test]
    fn the_space_that_users_say_is_the_one_that_may_come() {
        let refuse = json!({"spaceChangePolicy": REFUSE});
        let (a, b) = (space_of_files("a").unwrap(), space_of_files("b").unwrap());
        let template = first(&refuse, "a");
        let decision = decide(&model(&refuse, Some(&b)), &here("b", "b"), &serving(&template));
        assert_eq!((decision.spaces.served, decision.spaces.refused), (Some(b.clone()), None));
        // Before the first pods, too; and it has no say where everything may come.
        let decision = decide(&model(&refuse, Some(&a)), &here("b", "b"), &Observed::default());
        let refused = Spaces { refused: Some(b.clone()), expected: Some(a.clone()), ..Spaces::default() };
        assert_eq!((decision.template, decision.is_current, decision.spaces), (None, false, refused));
        let decision = decide(&model(&json!({}), Some(&a)), &here("b", "b"), &Observed::default());
        assert_eq!((decision.spaces.served, decision.spaces.refused), (Some(b), None));
    }

    #[test]
    fn what_pods_learned_that_fetch_for_themselves_counts() {
        let commit = "0".repeat(40);
        let source = |commit: &str| {
            json!({
                "source": {"huggingFace": {"repo": "org/name", "revision": commit}},
                "cache": {"ephemeral": true},
            })
        };
        let files = |commit: &str| {
            State::Here(Here {
                key: None,
                summary: Summary { commit: commit.to_owned(), ..Summary::default() },
            })
        };
        let old = model(&source(&commit), None);
        let first = decide(&old, &files(&commit), &Observed::default());
        assert_eq!(first.spaces, Spaces::default());
        let said = serde_json::to_string(&summary(&commit, "a")).unwrap();
        let status = json!({"initContainerStatuses": [{
            "name": "fetch", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "message": said}},
        }]});
        let mut seen = serving(&first.template.unwrap());
        seen.pods = observed(&json!({"pods": [{"metadata": {"name": "p"}, "status": status}]})).pods;
        let known = State::Here(Here { key: None, summary: summary(&commit, "a") });
        let decision = decide(&old, &known, &seen);
        assert_eq!(decision.spaces.served, space_of_files("a"));
        // It outlives them.
        let nobody = decide(&old, &files(&commit), &serving(&decision.template.unwrap()));
        assert_eq!(nobody.spaces.served, space_of_files("a"));
        let next = "1".repeat(40);
        let decision = decide(&model(&source(&next), None), &files(&next), &seen);
        assert_eq!(decision.spaces, Spaces { before: space_of_files("a"), ..Spaces::default() });
    }

    #[test]
    fn a_paused_model_tells_of_the_pods_that_run() {
        let a = first(&json!({}), "a");
        let paused = model(&json!({"paused": true, "inference": {"prompts": {"query": "q: "}}}), None);
        let decision = decide(&paused, &here("a", "a"), &serving(&a));
        assert_eq!(decision.spaces, Spaces { served: a.space(), ..Spaces::default() });
        assert!(arguments(&decision.template.unwrap()).contains("--prompt"));
    }
}
