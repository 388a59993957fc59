//! What the server is told of the names of network namespaces.

use std::collections::{BTreeMap, btree_map::Entry};

use fleetsock_proto::batch::NamespaceName;

use crate::namespaces::Namespace;

/// What was told.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<u64, String>);

impl Names {
    /// Forgets what was told, so that all is told anew.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// Up to `most` names that were not told yet; they then were.
    pub fn news<'n>(&mut self, namespaces: impl Iterator<Item = &'n Namespace>, most: usize) -> Vec<NamespaceName> {
        let (mut there, mut news) = (BTreeMap::new(), Vec::new());
        for namespace in namespaces {
            let (netns, name) = (namespace.netns(), called(namespace));
            match self.0.entry(netns) {
                Entry::Occupied(told) if *told.get() == name => {
                    there.extend(self.0.remove_entry(&netns));
                }
                Entry::Occupied(_) | Entry::Vacant(_) if news.len() < most => {
                    there.insert(netns, name.clone());
                    news.push(NamespaceName { netns, name });
                }
                Entry::Occupied(_) | Entry::Vacant(_) => {}
            }
        }
        // The number of one that is gone can come again.
        self.0 = there;
        news
    }
}

/// Its name, or what the kernel calls it (/proc/PID/ns/net), so that it is never taken for the host's own.
fn called(namespace: &Namespace) -> String {
    match namespace.name() {
        "" => format!("net:[{}]", namespace.netns()),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_when_it_is_new_and_when_it_changed_and_again_after_it_was_gone() {
        let mut names = Names::default();
        let mut told = |namespaces: &[(u64, &str)], most| {
            let there: Vec<Namespace> =
                namespaces.iter().map(|(netns, name)| Namespace::called(*netns, name)).collect();
            let told = names.news(there.iter(), most);
            told.into_iter().map(|one| (one.netns, one.name)).collect::<Vec<_>>()
        };
        let one = |netns, name: &str| vec![(netns, name.to_owned())];
        assert_eq!(told(&[(7, "blue"), (9, "")], 1), one(7, "blue"));
        assert_eq!(told(&[(7, "blue"), (9, "")], 1), one(9, "net:[9]"));
        assert_eq!(told(&[(7, "blue"), (9, "")], 1), []);
        assert_eq!(told(&[(7, "red"), (9, "")], 0), []);
        assert_eq!(told(&[(7, "red"), (9, "")], 5), one(7, "red"));
        assert_eq!(told(&[(9, "")], 5), []);
        assert_eq!(told(&[(7, "red"), (9, "")], 5), one(7, "red"));
        names.forget();
        assert_eq!(names.news([Namespace::called(9, "x")].iter(), 5).len(), 1);
    }
}
