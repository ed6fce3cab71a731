//! What the schema's types and bounds cannot say, in CEL (Common Expression Language),
//! decided by the API server when an object is written.
//!
//! Rules that compare with the old object stand at the level of `spec`: a rule of a field
//! does not run when the field is removed, so removing it and adding it again would get
//! around such a rule.

/// A rule of the schema.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Where it stands: a JSON pointer into the object's schema.
    pub at: &'static str,
    /// What has to be true.
    pub rule: &'static str,
    /// What a user reads when it is not.
    pub message: &'static str,
}

/// The longest name of an `EmbeddingModel`. The fetch Job's name has fifteen characters more
/// (`-fetch-01234567`), and its pods carry it in a label, which has room for 63.
pub const MAX_NAME: usize = 48;

const SPEC: &str = "/properties/spec";
const SOURCE: &str = "/properties/spec/properties/source";
const HUGGING_FACE: &str = "/properties/spec/properties/source/properties/huggingFace";
const ENDPOINT: &str = "/properties/spec/properties/source/properties/huggingFace/properties/endpoint";
const URL: &str = "/properties/spec/properties/source/properties/http/properties/url";
const VOLUME: &str = "/properties/spec/properties/podTemplate/properties/volumes/items";
const PEER: &str = "/properties/spec/properties/network/properties/allowFrom/items";

/// A host that may be asked: neither this machine nor an address that only means something
/// on a link (where clouds keep their metadata). Private ranges are allowed: mirrors live
/// there. A name's last label begins with a letter, and numbers have no leading zeros,
/// because programs read `0x7f.1`, `2130706433` and `0177.0.0.1` as addresses.
///
/// By patterns, because the API server estimates the cost of functions on addresses as if
/// what they give had no bound.
const HOST: &str = "self.matches('^https?://(([A-Za-z0-9_-]+[.])*[A-Za-z][A-Za-z0-9-]*\
        |(0|[1-9][0-9]{0,2})([.](0|[1-9][0-9]{0,2})){3}|[[][0-9A-Fa-f]+:[0-9A-Fa-f:.]*[]])(:[0-9]{1,5})?(/|$)') \
    && !self.matches('^https?://(0|127|169[.]254)[.]') \
    && !self.matches('^https?://(100[.]100[.]100[.]200|192[.]0[.]0[.]192)(:|/|$)') \
    && !self.matches('(?i)^https?://[[](0+:|fe[89ab][0-9a-f]:|fd00:0?ec2:)') \
    && !self.matches('(?i)^https?://(([a-z0-9_-]+[.])*localhost|metadata|metadata[.]google[.]internal)(:|/|$)')";

/// What a user reads when [`HOST`] is broken.
pub const HOST_MESSAGE: &str = "must be an address outside of the node: no loopback, link-local or metadata address, \
     and no number that stands for one";

/// All rules, in the order of the schema.
pub const RULES: &[Rule] = &[
    Rule {
        at: "",
        rule: "self.metadata.name.size() <= 48 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        message: "metadata.name must have at most 48 characters, lower-case letters, digits and '-', and begin \
                  with a letter: the Service gets this name",
    },
    Rule {
        at: SOURCE,
        rule: "[has(self.huggingFace), has(self.persistentVolumeClaim), has(self.http), has(self.image)]\
               .filter(x, x).size() == 1",
        message: "exactly one of huggingFace, persistentVolumeClaim, http and image is needed",
    },
    Rule {
        at: HUGGING_FACE,
        rule: "!self.repo.contains('..') && !self.repo.contains('--') && !self.repo.endsWith('.git')",
        message: "repo must not have '..' or '--' in it or end in .git",
    },
    Rule {
        at: HUGGING_FACE,
        rule: "!has(self.revision) || !(self.revision.contains('..') || self.revision.contains('//') || \
               self.revision.contains('/.'))",
        message: "revision must not have '..', '//' or '/.' in it",
    },
    Rule { at: ENDPOINT, rule: HOST, message: HOST_MESSAGE },
    Rule { at: URL, rule: HOST, message: HOST_MESSAGE },
    Rule {
        at: URL,
        rule: "!self.contains('/../') && !self.contains('/./')",
        message: "must not have '/../' or '/./' in it",
    },
    Rule {
        at: SPEC,
        rule: "!(has(self.gpu) && has(self.inference) && has(self.inference.device) && \
               self.inference.device == 'CPU')",
        message: "inference.device CPU contradicts gpu: leave one of them out",
    },
    Rule {
        at: SPEC,
        rule: "has(self.gpu) || !(has(self.inference) && has(self.inference.device) && \
               self.inference.device == 'CUDA')",
        message: "inference.device CUDA needs gpu",
    },
    Rule {
        at: SPEC,
        rule: "!has(self.autoscaling) || self.autoscaling.minReplicas <= self.autoscaling.maxReplicas",
        message: "autoscaling.minReplicas must not be above autoscaling.maxReplicas",
    },
    Rule {
        at: SPEC,
        rule: "!has(self.autoscaling) || (has(self.resources) && \
               ((has(self.resources.requests) && 'cpu' in self.resources.requests) || \
               (has(self.resources.limits) && 'cpu' in self.resources.limits)))",
        message: "autoscaling needs resources.requests.cpu, because it aims at a part of it",
    },
    Rule {
        at: SPEC,
        rule: "quantity(string(self.cache.size)).isGreaterThan(quantity('0'))",
        message: "cache.size must be above 0",
    },
    Rule {
        at: SPEC,
        rule: "!quantity(string(self.cache.size)).isLessThan(quantity(string(oldSelf.cache.size)))",
        message: "cache.size cannot shrink",
    },
    Rule {
        at: SPEC,
        rule: "has(self.cache.storageClassName) == has(oldSelf.cache.storageClassName) && \
               (!has(self.cache.storageClassName) || self.cache.storageClassName == oldSelf.cache.storageClassName)",
        message: "cache.storageClassName cannot be changed: make another EmbeddingModel",
    },
    Rule {
        at: SPEC,
        rule: "self.cache.accessModes.size() == oldSelf.cache.accessModes.size() && \
               self.cache.accessModes.all(mode, mode in oldSelf.cache.accessModes)",
        message: "cache.accessModes cannot be changed: make another EmbeddingModel",
    },
    Rule {
        at: SPEC,
        rule: "!(has(self.cache.ephemeral) && self.cache.ephemeral && has(self.source.huggingFace)) || \
               (has(self.source.huggingFace.revision) && \
               self.source.huggingFace.revision.matches('^[0-9a-f]{40}$'))",
        message: "with cache.ephemeral the revision must be a full commit of 40 digits, or each replica could \
                  resolve it to another",
    },
    Rule {
        at: SPEC,
        rule: "!(has(self.cache.ephemeral) && self.cache.ephemeral && has(self.cache.retain) && self.cache.retain)",
        message: "cache.retain contradicts cache.ephemeral: leave one of them out",
    },
    Rule {
        at: PEER,
        rule: "has(self.podSelector) || has(self.namespaceSelector)",
        message: "podSelector or namespaceSelector is needed",
    },
    Rule {
        at: VOLUME,
        rule: "[has(self.configMap), has(self.secret), has(self.emptyDir), has(self.persistentVolumeClaim)]\
               .filter(x, x).size() == 1",
        message: "exactly one of configMap, secret, emptyDir and persistentVolumeClaim is needed",
    },
    Rule {
        at: VOLUME,
        rule: "!(self.name in ['model', 'tmp', 'trusted-ca'])",
        message: "the names model, tmp and trusted-ca are the operator's own",
    },
];
