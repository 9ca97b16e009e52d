//! One of the parts that a list is divided into.

use std::{fmt, str::FromStr};

/// Part `index` of `of`: the lines whose number, divided by `of`, leaves `index`. So every part has lines of the whole
/// list, and none has all the slow ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: u64,
    of: u64,
}

impl Shard {
    /// The whole list.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Whether line `number`, from 0, is of this part.
    pub fn holds(self, number: u64) -> bool {
        number % self.of == self.index
    }

    /// `pattern` with the part's number for `{shard}`, as wide as that of the last part, so that names sort.
    pub fn name(self, pattern: &str) -> String {
        let width = (self.of - 1).to_string().len();
        pattern.replace("{shard}", &format!("{:0width$}", self.index))
    }

    /// Whether there are other parts.
    pub fn has_others(self) -> bool {
        self.of > 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err("write it as i/n, with i from 0 to n - 1: 0/4 is the first of four".into()),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_and_named() {
        for (text, name) in
            [("0/1", "a-0"), ("3/10", "a-3"), ("3/11", "a-03"), ("99/100", "a-99"), ("0/101", "a-000")]
        {
            let shard: Shard = text.parse().unwrap();
            assert_eq!((shard.name("a-{shard}"), shard.to_string()), (name.into(), text.into()));
        }
        for bad in ["", "1", "1/1", "-1/2", "0/0", "a/2", "1/2/3"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_line_is_of_one() {
        let shards = ["0/3", "1/3", "2/3"].map(|text| text.parse::<Shard>().unwrap());
        for line in 0..10 {
            assert_eq!(shards.iter().filter(|shard| shard.holds(line)).count(), 1);
        }
        assert!(shards[1].holds(4));
    }
}
