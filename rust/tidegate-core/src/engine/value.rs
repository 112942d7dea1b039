//! Values of scopes that are in use, such as hosts, by number.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;

/// The value of those that did not say one.
pub(super) const UNSAID: u32 = 0;
/// No value.
const NONE: u32 = u32::MAX;
/// What is looked at of a hash; in tests so little that texts share it.
const HASH: u64 = if cfg!(test) { 0xfff } else { 0xffff_ffff };

/// Each text is kept once, and found by 32 bits of its hash: a map by the texts themselves would take three times as much.
#[derive(Debug)]
pub(super) struct Values {
    hasher: RandomState,
    /// By hash, the value that came last.
    last: HashMap<u32, u32>,
    values: Vec<Value>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Value {
    text: Box<str>,
    holders: u32,
    /// Of those with the same hash, the one that came before.
    before: u32,
}

impl Default for Values {
    fn default() -> Values {
        let mut values = Values { hasher: RandomState::new(), last: HashMap::new(), values: Vec::new(), free: Vec::new() };
        let unsaid = values.id("");
        debug_assert_eq!(unsaid, UNSAID);
        values.keep(unsaid);
        values
    }
}

impl Values {
    /// Its number, for as long as something that was [kept](Values::keep) with it is not [left](Values::leave).
    pub(super) fn id(&mut self, text: &str) -> u32 {
        let hash = self.hash(text);
        let last = self.last.get(&hash).copied().unwrap_or(NONE);
        let mut at = last;
        while let Some(value) = self.values.get(at as usize) {
            if *value.text == *text {
                return at;
            }
            at = value.before;
        }
        let value = Value { text: text.into(), holders: 0, before: last };
        let id = match self.free.pop() {
            Some(id) => {
                self.values[id as usize] = value;
                id
            }
            None => {
                self.values.push(value);
                (self.values.len() - 1) as u32
            }
        };
        self.last.insert(hash, id);
        id
    }

    pub(super) fn text(&self, id: u32) -> &str {
        &self.values[id as usize].text
    }

    pub(super) fn keep(&mut self, id: u32) {
        self.values[id as usize].holders += 1;
    }

    pub(super) fn leave(&mut self, id: u32) {
        self.values[id as usize].holders -= 1;
        if self.values[id as usize].holders == 0 {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u32) {
        let text = std::mem::take(&mut self.values[id as usize].text);
        let before = self.values[id as usize].before;
        if let Entry::Occupied(mut last) = self.last.entry(self.hash(&text)) {
            if *last.get() != id {
                let mut at = *last.get();
                while self.values[at as usize].before != id {
                    at = self.values[at as usize].before;
                }
                self.values[at as usize].before = before;
            } else if before == NONE {
                last.remove();
            } else {
                last.insert(before);
            }
        }
        self.free.push(id);
    }

    fn hash(&self, text: &str) -> u32 {
        (self.hasher.hash_one(text) & HASH) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_number_until_nothing_is_kept_with_it() {
        let mut values = Values::default();
        let (first, second) = (values.id("first"), values.id("second"));
        values.keep(first);
        values.keep(first);
        values.keep(second);
        assert_eq!([values.id("second"), values.id("first"), values.id("")], [second, first, UNSAID]);
        values.leave(first);
        assert_eq!((values.id("first"), values.text(first)), (first, "first"));
        values.leave(first);
        let third = values.id("third");
        assert_eq!((third, values.text(third)), (first, "third"));
        assert_ne!(values.id("first"), third);
    }

    #[test]
    fn texts_with_the_same_hash_are_told_apart() {
        let mut values = Values::default();
        let texts: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
        let ids: Vec<u32> = texts.iter().map(|text| values.id(text)).collect();
        ids.iter().for_each(|&id| values.keep(id));
        assert!(values.last.len() <= HASH as usize + 1);
        for (text, &id) in texts.iter().zip(&ids).step_by(2) {
            assert_eq!(values.id(text), id);
            values.leave(id);
        }
        for (text, &id) in texts.iter().zip(&ids).skip(1).step_by(2) {
            assert_eq!(values.id(text), id);
        }
        ids.iter().skip(1).step_by(2).for_each(|&id| values.leave(id));
        assert_eq!((values.last.len(), values.free.len()), (1, texts.len()));
    }
}
