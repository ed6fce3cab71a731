//! Facts for people: a line each, what it is of first.

use std::fmt;

use super::{Facts, Numerics, Other, Stored};

/// How wide the first column is.
const COLUMN: usize = 14;

/// 438000000 → `438 MB`.
fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..10_000_000_000 => format!("{:.0} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

/// 109482240 → `109.5 million`.
fn count(count: u64) -> String {
    match count {
        0..1_000_000 => count.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} million", count as f64 / 1e6),
        _ => format!("{:.2} billion", count as f64 / 1e9),
    }
}

/// `1 file`, `2 files`.
fn some(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// On one line, whatever is in it.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { implementation, dtype, kernels, device } = self;
        write!(f, "{implementation}, {dtype} on {device}")?;
        match kernels {
            Some(kernels) => write!(f, ", with {kernels}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, bytes: size, pickled, dtypes, unused_tensors } = self;
        write!(f, "{} in {}", bytes(*size), some(*files, "file"))?;
        let total: u64 = dtypes.values().sum();
        for (dtype, of_it) in dtypes {
            match dtypes.len() {
                1 => write!(f, ", {dtype}")?,
                _ => write!(f, ", {:.1} % {dtype}", 100.0 * *of_it as f64 / total.max(1) as f64)?,
            }
        }
        if *pickled {
            f.write_str(", pickled")?;
        }
        match unused_tensors {
            0 => Ok(()),
            unused => write!(f, "; {} not used", some(*unused, "tensor")),
        }
    }
}

impl Facts {
    fn kind_for_people(&self) -> String {
        let Self { kind, labels, activation, instruction, .. } = self;
        if instruction.is_some() {
            return "cross-encoder: a language model that judges, and answers yes or no".to_owned();
        }
        match activation {
            None => (*kind).to_owned(),
            Some(activation) => {
                let what = if labels.len() == 1 { "a score" } else { "scores" };
                format!("{kind}: {what} of {}, {activation}", labels.join(", "))
            }
        }
    }

    /// What each line is of, and its text. Without a name, it goes on with what is above.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        let mut say = |name, text: String| lines.push((name, text));
        say("model", self.source.clone());
        if let Some(found) = self.found {
            let came = match self.downloaded_bytes {
                0 => String::new(),
                count => format!("; {} were fetched to tell this", bytes(count)),
            };
            say("found", format!("{found}{came}"));
        }
        say("kind", self.kind_for_people());
        if let Some(instruction) = self.instruction {
            say("asked", instruction.to_owned());
        }
        say("architecture", format!("{} ({})", self.architecture, self.family));
        say("parameters", count(self.parameters));
        say("weights", self.weights.to_string());
        if self.activation.is_none() {
            let norm = if self.normalizes { ", of norm 1" } else { "" };
            say("vectors", format!("{} dimensions{norm}", self.dimensions));
            if let [shorter @ .., _] = self.allowed_dimensions.as_slice()
                && !shorter.is_empty()
            {
                let shorter: Vec<_> = shorter.iter().map(ToString::to_string).collect();
                say("shortened to", shorter.join(", "));
            }
        }
        say("longest text", format!("{} tokens", self.max_tokens));
        let without = if self.include_prompt { "" } else { ", without the prompt" };
        say("pooling", format!("{}{without}", self.pooling));
        if !self.modules.is_empty() {
            say("modules", self.modules.join("; "));
        }
        self.prompt_lines(&mut say);
        if let Some(space) = &self.space {
            say("space", space.clone());
        }
        say("served by", self.numerics.to_string());
        self.memory_lines(&mut say);
        for (place, Other { implementation, refused, numerics }) in self.others.iter().enumerate() {
            let why = match (refused, numerics) {
                (Some(refused), _) => format!("{implementation}: {refused}"),
                (None, Some(numerics)) => format!("{numerics}: by --implementation {implementation}"),
                (None, None) => continue,
            };
            say(if place == 0 { "instead" } else { "" }, why);
        }
        for note in &self.notes {
            say("note", note.clone());
        }
        for (place, what) in self.unknown.iter().enumerate() {
            say(if place == 0 { "not known" } else { "" }, what.clone());
        }
        lines
    }

    fn prompt_lines(&self, say: &mut impl FnMut(&'static str, String)) {
        for (place, (name, text)) in self.prompts.iter().enumerate() {
            let default = if self.default_prompt.as_ref() == Some(name) { " (default)" } else { "" };
            say(if place == 0 { "prompts" } else { "" }, format!("{name}{default}: {}", quoted(text)));
        }
        if let Some(wanted) = self.wanted_prompts {
            say("wanted", "its authors want these before texts, and its files do not say so:".to_owned());
            for (name, text) in [("query", wanted.query), ("document", wanted.document)] {
                if !text.is_empty() {
                    say("", format!("--prompt {}", shell(&format!("{name}={text}"))));
                }
            }
        } else if self.prompts.is_empty() && self.activation.is_none() {
            say("prompts", "none in its files".to_owned());
        }
    }

    fn memory_lines(&self, say: &mut impl FnMut(&'static str, String)) {
        let memory = self.memory;
        say("memory", format!("about {}, an estimate:", bytes(memory.total)));
        let weights =
            format!("{} weights, as {} holds them", bytes(memory.weights), self.numerics.implementation);
        say(
            "",
            match memory.gpu {
                Some(_) => format!("on each GPU {weights}, and what batches need on top"),
                None => weights,
            },
        );
        say("", format!("{} while they are read", bytes(memory.loading)));
        say("", format!("{} for the program, the tokenizer and forwards", bytes(memory.other)));
    }
}

/// As a shell takes it: in single quotes.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, text) in self.lines() {
            // A name or a label comes from a file.
            let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            writeln!(f, "{name:COLUMN$}{text}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_are_read_at_a_glance() {
        for (given, expected) in [
            (12, "12 bytes"),
            (7_400, "7.4 kB"),
            (437_951_328, "438 MB"),
            (1_191_586_416, "1192 MB"),
            (15_134_000_000, "15.1 GB"),
        ] {
            assert_eq!(bytes(given), expected);
        }
        for (given, expected) in
            [(512, "512"), (109_482_240, "109.5 million"), (7_567_295_488, "7.57 billion")]
        {
            assert_eq!(count(given), expected);
        }
        assert_eq!(shell("a='x'\n"), "'a='\\''x'\\''\n'");
    }
}
