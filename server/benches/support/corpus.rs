//! The texts: the same on every machine, of four kinds of length.

/// Texts of one kind of length.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its texts.
    pub(crate) texts: Vec<String>,
}

/// How many words a text of a class has: with this many chances in a hundred, a
/// number in this range. BERT makes seven tokens of five of these words with their full
/// stops, and adds two.
type Lengths = &'static [(u64, u64, u64)];

/// Queries, titles.
const SHORT: Lengths = &[(100, 3, 8)];
/// A paragraph; every text is about as long as the next.
const MEDIUM: Lengths = &[(100, 30, 48)];
/// What a search index meets: many short texts, some long, none too long.
const MIXED: Lengths = &[(60, 5, 26), (30, 27, 61), (10, 68, 178)];
/// Pages, a little shorter than the model's limit of 256 tokens.
const LONG: Lengths = &[(100, 140, 182)];

/// All classes. Counts make every class about the same work.
pub(crate) fn classes(quick: bool) -> Vec<Class> {
    let part = if quick { 2 } else { 1 };
    vec![short(1024 / part), medium(256 / part), mixed(256 / part), long(64 / part)]
}

/// Texts of about 10 tokens.
pub(crate) fn short(count: usize) -> Class {
    Class { name: "short", texts: texts(1, SHORT, count) }
}

/// Texts of about 57 tokens.
pub(crate) fn medium(count: usize) -> Class {
    Class { name: "medium", texts: texts(2, MEDIUM, count) }
}

/// Texts of about 51 tokens in the mean, up to 256.
pub(crate) fn mixed(count: usize) -> Class {
    Class { name: "mixed", texts: texts(3, MIXED, count) }
}

/// Texts of about 228 tokens.
pub(crate) fn long(count: usize) -> Class {
    Class { name: "long", texts: texts(4, LONG, count) }
}

fn texts(seed: u64, lengths: Lengths, count: usize) -> Vec<String> {
    let mut random = Random(seed);
    (0..count).map(|_| text(&mut random, lengths)).collect()
}

fn text(random: &mut Random, lengths: Lengths) -> String {
    let mut chance = random.below(100);
    let mut words = 1;
    for &(share, least, most) in lengths {
        if chance < share {
            words = least + random.below(most - least + 1);
            break;
        }
        chance -= share;
    }
    let mut text = String::new();
    while words > 0 {
        let sentence = words.min(6 + random.below(10));
        for place in 0..sentence {
            let word = WORDS[random.below(WORDS.len() as u64) as usize];
            if !text.is_empty() {
                text.push(' ');
            }
            if place == 0 {
                text.extend(word.chars().next().map(|first| first.to_ascii_uppercase()));
                text.push_str(&word[1..]);
            } else {
                text.push_str(word);
            }
        }
        text.push('.');
        words -= sentence;
    }
    text
}

/// splitmix64 (Steele, Lea, Flood, 2014): no library's next version changes the texts.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Common words, which are one token each, and rarer ones of several tokens.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not",
    "he", "his", "but", "at", "are", "this", "have", "from", "or", "had", "an", "they", "which", "one", "you",
    "were", "all", "her", "she", "there", "would", "their", "we", "him", "been", "has", "when", "who", "will",
    "no", "more", "if", "out", "so", "up", "said", "what", "its", "about", "than", "into", "them", "can", "only",
    "other", "time", "new", "some", "could", "these", "two", "may", "first", "then", "do", "any", "like", "my",
    "now", "over", "such", "our", "man", "me", "even", "most", "made", "after", "also", "well", "did", "many",
    "before", "must", "years", "back", "through", "much", "where", "your", "down", "should", "because", "long",
    "each", "just", "state", "those", "people", "too", "world", "little", "system", "house", "water", "school",
    "number", "night", "public", "letter", "market", "river", "city", "music", "history", "science", "power",
    "paper", "engine", "garden", "summer", "winter", "mountain", "language", "question", "answer", "reason",
    "service", "model", "computer", "network", "database", "memory", "error", "request", "message", "version",
    "customer", "price", "contract", "weather", "doctor", "patient", "student", "teacher", "captain", "bridge",
    "embedding", "tokenizer", "kubernetes", "throughput", "idempotent", "reconciliation", "photosynthesis",
    "accordion", "bioluminescent", "cartographer", "defenestration", "electromagnetism", "fjord", "gyroscope",
    "haberdashery", "isthmus", "juxtaposed", "kaleidoscope", "lighthouse", "marzipan", "nightingale", "obsidian",
    "palimpsest", "quicksilver", "rhododendron", "sourdough", "thermostat", "ultramarine", "vineyard", "zeppelin",
];
