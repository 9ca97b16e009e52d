//! Items under way, in the order of the list: a table is cut where its last item is done, never behind a gap.

use std::collections::VecDeque;

use blake3::Hash;

use crate::cache::TableItem;

/// The items between the tables that are written and the end of what has been read.
pub(super) struct Window {
    /// With the digest of the list up to each.
    items: VecDeque<(Hash, Option<TableItem>)>,
    /// The place of the first of them, counted from the beginning of the run.
    first: u64,
    /// Items at the front that are done.
    n_done: usize,
}

impl Window {
    pub fn new() -> Self {
        Self { items: VecDeque::new(), first: 0, n_done: 0 }
    }

    /// A place for the next item of the list, up to which that has this digest.
    pub fn reserve(&mut self, digest: Hash) -> u64 {
        self.items.push_back((digest, None));
        self.first + self.items.len() as u64 - 1
    }

    /// The item of a place is done.
    pub fn fill(&mut self, place: u64, item: TableItem) {
        let at = usize::try_from(place - self.first).expect("the place is in the window");
        self.items[at].1 = Some(item);
        while self.items.get(self.n_done).is_some_and(|(_, item)| item.is_some()) {
            self.n_done += 1;
        }
    }

    /// Items in the window.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Items at the front that are done.
    pub fn n_done(&self) -> usize {
        self.n_done
    }

    /// Takes up to `limit` items that are done from the front, with the digest of the list up to the last of them.
    pub fn take(&mut self, limit: usize) -> (Vec<TableItem>, Option<Hash>) {
        let n = self.n_done.min(limit);
        self.n_done -= n;
        self.first += n as u64;
        let mut last = None;
        let items = self.items.drain(..n).map(|(digest, item)| {
            last = Some(digest);
            item.expect("counted as done")
        });
        (items.collect(), last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{FailedItem, Source};

    fn item(line: u64) -> TableItem {
        let outcome = Err(FailedItem::now(Source::Text, "internal", String::new()));
        TableItem { id: line.to_string(), line, image: None, outcome }
    }

    #[test]
    fn nothing_is_taken_from_behind_a_gap() {
        let mut window = Window::new();
        let digest = |line: u8| Hash::from_bytes([line; 32]);
        let places: Vec<_> = (10..15).map(|line| window.reserve(digest(line))).collect();
        let lines = |(items, last): (Vec<TableItem>, _)| {
            let lines: Vec<_> = items.iter().map(|item| item.line).collect();
            assert_eq!(last, lines.last().map(|line| digest(*line as u8)));
            lines
        };
        window.fill(places[1], item(11));
        window.fill(places[4], item(14));
        assert!(lines(window.take(9)).is_empty());
        window.fill(places[0], item(10));
        assert_eq!(lines(window.take(1)), [10]);
        assert_eq!((window.n_done(), window.len()), (1, 4));
        window.fill(places[2], item(12));
        assert_eq!(lines(window.take(9)), [11, 12]);
        let next = window.reserve(digest(15));
        window.fill(next, item(15));
        window.fill(places[3], item(13));
        assert_eq!(lines(window.take(9)), [13, 14, 15]);
        assert_eq!(window.len(), 0);
    }
}
