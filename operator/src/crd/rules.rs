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
const PROMPTS: &str = "/properties/spec/properties/inference/properties/prompts";
const VOLUME: &str = "/properties/spec/properties/podTemplate/properties/volumes/items";
const PEER: &str = "/properties/spec/properties/network/properties/allowFrom/items";

/// One group of an IPv6 address.
macro_rules! group {
    () => {
        "[0-9A-Fa-f]{1,4}"
    };
}

/// A number of an IPv4 address.
macro_rules! octet {
    () => {
        "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}

/// A scheme, a host and perhaps a port; neither a user nor a password. A name's last label
/// begins with a letter, and numbers have no leading zeros, because programs read `0x7f.1`,
/// `2130706433` and `0177.0.0.1` as addresses.
macro_rules! origin {
    () => {
        concat!(
            "^https?://(([A-Za-z0-9_-]+[.])*[A-Za-z][A-Za-z0-9-]*|",
            concat!(octet!(), "([.]", octet!(), "){3}|"),
            concat!(r"\[(", group!(), ":(:", group!(), "){1,6}|"),
            concat!("(", group!(), ":){1,2}(:", group!(), "){1,5}|"),
            concat!("(", group!(), ":){1,3}(:", group!(), "){1,4}|"),
            concat!("(", group!(), ":){1,4}(:", group!(), "){1,3}|"),
            concat!("(", group!(), ":){1,5}(:", group!(), "){1,2}|"),
            concat!("(", group!(), ":){1,6}:", group!(), "|"),
            concat!("(", group!(), ":){7}", group!(), "|(", group!(), r":){1,7}:)\])"),
            "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?(/|$)",
        )
    };
}

/// IPv4 addresses of this machine, of its link, and of clouds' metadata.
macro_rules! local_v4 {
    () => {
        "^https?://((0|127|169[.]254)[.]|(100[.]100[.]100[.]200|168[.]63[.]129[.]16|192[.]0[.]0[.]192)(:|/|$))"
    };
}

/// The same of IPv6; what begins with zeros is loopback, or an IPv4 address in disguise.
macro_rules! local_v6 {
    () => {
        r"(?i)^https?://\[(0+:|fe[89ab][0-9a-f]:|fd00:0?ec2:|fd20:0{0,2}ce:)"
    };
}

/// Names that stand for such addresses, in the hosts file of every pod or in a cloud's DNS.
macro_rules! local_name {
    () => {
        concat!(
            "(?i)^https?://(([a-z0-9_-]+[.])*localhost|localhost[.]localdomain|ip6-(localhost|loopback)|",
            "metadata|metadata[.]google[.]internal|metadata[.]goog|instance-data([.]ec2[.]internal)?)(:|/|$)",
        )
    };
}

/// What an address must look like.
pub const ORIGIN: &str = origin!();

/// What an address must not look like: this machine, or what only means something on a link
/// (where clouds keep their metadata). Private ranges are allowed: mirrors live there.
pub const LOCAL: [&str; 3] = [local_v4!(), local_v6!(), local_name!()];

/// [`ORIGIN`] and [`LOCAL`]. By patterns, because the API server estimates the cost of
/// functions on addresses as if what they give had no bound.
const HOST: &str = concat!(
    concat!("self.matches(r'", origin!(), "')"),
    concat!(" && !self.matches(r'", local_v4!(), "')"),
    concat!(" && !self.matches(r'", local_v6!(), "')"),
    concat!(" && !self.matches(r'", local_name!(), "')"),
);

/// What a user reads when [`HOST`] is broken.
pub const HOST_MESSAGE: &str = "must be an address outside of the node: no loopback, link-local or metadata address, \
     and no number that stands for one";

/// Segments of a path that lead elsewhere, also in disguise: programs take them away before
/// they ask, and what was allowed by its beginning was another address then.
macro_rules! dots {
    () => {
        "(?i)/([.]|%2e){1,2}(/|$)"
    };
}

/// What the path of an address must not look like.
pub const DOTS: &str = dots!();
/// What a user reads when [`DOTS`] is found.
pub const DOTS_MESSAGE: &str = "must not have '/../' or '/./' in it";
const NO_DOTS: &str = concat!("!self.matches(r'", dots!(), "')");

macro_rules! prompt_name {
    () => {
        "^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$"
    };
}

/// What the name of a prompt can be, so that it can be said in a flag and after a model's name.
pub const PROMPT_NAME: &str = prompt_name!();
/// What a user reads when [`PROMPT_NAME`] is broken by a name of `inference.prompts`.
pub const PROMPT_NAME_MESSAGE: &str = "names of prompts have at most 63 letters, digits, '.', '_' and '-', and begin with a letter, digit or '_'";

/// Whether the policy refuses a change of the space.
macro_rules! refuses {
    () => {
        "has(self.spaceChangePolicy) && self.spaceChangePolicy == 'Refuse'"
    };
}

/// What of a spec's source decides the model's files: a list, as long as there are kinds of
/// source. Of what is named by a hash, the hash: it may move to another address.
macro_rules! decisive_source {
    ($spec:literal) => {
        concat!(
            concat!("(has(", $spec, ".source.huggingFace) ? ['hub', ", $spec, ".source.huggingFace.repo, "),
            concat!($spec, ".source.huggingFace.revision] : []) + "),
            concat!("(has(", $spec, ".source.http) ? ['http', ", $spec, ".source.http.sha256] : []) + "),
            concat!("(has(", $spec, ".source.persistentVolumeClaim) ? ['claim', "),
            concat!($spec, ".source.persistentVolumeClaim.claimName, "),
            concat!("has(", $spec, ".source.persistentVolumeClaim.path) ? "),
            concat!($spec, ".source.persistentVolumeClaim.path : ''] : []) + "),
            concat!(
                "(has(",
                $spec,
                ".source.image) ? ['image', ",
                $spec,
                ".source.image.reference.split('@')[1], "
            ),
            concat!("has(", $spec, ".source.image.path) ? ", $spec, ".source.image.path : ''] : [])"),
        )
    };
}

/// A spec's prompts.
macro_rules! prompts {
    ($spec:literal) => {
        concat!(
            concat!("(has(", $spec, ".inference) && has(", $spec, ".inference.prompts) ? "),
            concat!($spec, ".inference.prompts : {})"),
        )
    };
}

/// The name of a spec's default prompt.
macro_rules! default_prompt {
    ($spec:literal) => {
        concat!(
            concat!("(has(", $spec, ".inference) && has(", $spec, ".inference.defaultPrompt) ? "),
            concat!($spec, ".inference.defaultPrompt : '')"),
        )
    };
}

/// What a user reads when a repository's name leads elsewhere.
pub const REPO_MESSAGE: &str = "repo must not have '..' or '--' in it or end in .git";
/// What a user reads when a revision leads elsewhere.
pub const REVISION_MESSAGE: &str = "revision must not have '..', '//' or '/.' in it";

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
        message: REPO_MESSAGE,
    },
    Rule {
        at: HUGGING_FACE,
        rule: "!has(self.revision) || !(self.revision.contains('..') || self.revision.contains('//') || \
               self.revision.contains('/.'))",
        message: REVISION_MESSAGE,
    },
    Rule { at: ENDPOINT, rule: HOST, message: HOST_MESSAGE },
    Rule { at: ENDPOINT, rule: NO_DOTS, message: DOTS_MESSAGE },
    Rule { at: URL, rule: HOST, message: HOST_MESSAGE },
    Rule { at: URL, rule: NO_DOTS, message: DOTS_MESSAGE },
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
        rule: "has(self.gpu) || !(has(self.inference) && has(self.inference.dtype) && \
               self.inference.dtype == 'Float16')",
        message: "inference.dtype Float16 needs gpu",
    },
    Rule {
        at: SPEC,
        rule: "!has(self.autoscaling) || self.autoscaling.minReplicas <= self.autoscaling.maxReplicas",
        message: "autoscaling.minReplicas must not be above autoscaling.maxReplicas",
    },
    Rule {
        at: SPEC,
        rule: "!has(self.autoscaling) || (has(self.autoscaling.targetQueuedTokensPerReplica) && \
               !has(self.autoscaling.targetCPUUtilizationPercentage)) || (has(self.resources) && \
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
        at: SPEC,
        rule: concat!(
            "!(",
            refuses!(),
            ") || ",
            decisive_source!("self"),
            " == ",
            decisive_source!("oldSelf")
        ),
        message: "spaceChangePolicy Refuse: source decides the vector space and cannot be changed; set the policy to \
                  Allow in the same update, and make indexes anew",
    },
    Rule {
        at: SPEC,
        rule: concat!(
            concat!("!(", refuses!(), ") || (", prompts!("self"), " == ", prompts!("oldSelf")),
            concat!(" && ", default_prompt!("self"), " == ", default_prompt!("oldSelf"), ")"),
        ),
        message: "spaceChangePolicy Refuse: inference.prompts and inference.defaultPrompt decide the vector space and \
                  cannot be changed; set the policy to Allow in the same update, and make indexes anew",
    },
    Rule {
        at: PROMPTS,
        rule: concat!("self.all(name, name.matches('", prompt_name!(), "'))"),
        message: PROMPT_NAME_MESSAGE,
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
