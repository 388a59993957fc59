//! Names of groups, each with a number, so that a group takes few bytes.

use std::{collections::HashMap, hash::Hash};

/// What a name takes beside its text, which is there twice.
const NAME_BYTES: usize = 128;

/// Names, and their numbers.
#[derive(Debug)]
pub(super) struct Names<T> {
    all: Vec<T>,
    numbers: HashMap<T, u32>,
}

impl<T> Default for Names<T> {
    fn default() -> Names<T> {
        Names { all: Vec::new(), numbers: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Names<T> {
    /// The number of a name, and whether it is a new one.
    fn number(&mut self, name: T) -> (u32, bool) {
        if let Some(number) = self.numbers.get(&name) {
            return (*number, false);
        }
        // Each takes more than a byte of those that there may be.
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(name.clone());
        self.numbers.insert(name, number);
        (number, true)
    }

    pub(super) fn name(&self, number: u32) -> Option<&T> {
        self.all.get(usize::try_from(number).ok()?)
    }
}

/// The number of a name of so many bytes; adds to `bytes` what a new one takes.
pub(super) fn numbered<T: Clone + Eq + Hash>(names: &mut Names<T>, length: usize, name: T, bytes: &mut usize) -> u32 {
    let (number, is_new) = names.number(name);
    if is_new {
        *bytes += 2 * length + NAME_BYTES;
    }
    number
}
