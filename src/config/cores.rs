//! A set of cores, as Linux tools write it.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Cores by number: `0-7,16`. Empty for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoreList(BTreeSet<usize>);

/// No machine has more.
const MAX_CORE: usize = 8191;

impl CoreList {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Their numbers, rising.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().copied()
    }
}

impl FromStr for CoreList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |part| format!("`{part}` is no core: write numbers and ranges, such as `0-7,16`");
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|core| *core <= MAX_CORE);
        let mut cores = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cores.extend(first..=last),
                _ => return Err(wrong(part)),
            }
        }
        Ok(Self(cores))
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cores = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cores.next() {
            let mut last = first;
            while let Some(next) = cores.next_if(|next| *next == last + 1) {
                last = next;
            }
            match last == first {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl TryFrom<String> for CoreList {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<CoreList> for String {
    fn from(cores: CoreList) -> Self {
        cores.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_ranges() {
        for (text, cores, written) in [
            ("", vec![], ""),
            ("3", vec![3], "3"),
            ("0-3,8", vec![0, 1, 2, 3, 8], "0-3,8"),
            (" 5 , 4,0-1", vec![0, 1, 4, 5], "0-1,4-5"),
        ] {
            let list: CoreList = text.parse().unwrap();
            assert_eq!((list.iter().collect::<Vec<_>>(), list.to_string().as_str()), (cores, written));
        }
        for text in ["a", "3-1", "1-", "-1", "9000"] {
            assert!(text.parse::<CoreList>().unwrap_err().contains("is no core"), "{text}");
        }
    }
}
