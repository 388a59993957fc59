//! What the server is told of the names of network namespaces.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fleetsock_proto::batch::NamespaceName;

use crate::namespaces::Namespace;

/// After so long everything is told again: a batch can be dropped, and a server can be of a version before names.
const AGAIN: Duration = Duration::from_secs(3600);

/// What was told.
#[derive(Debug, Default)]
pub struct Names {
    told: BTreeMap<u64, Told>,
    began: Option<Instant>,
}

/// What a namespace was called when that was told, and whether it is to be told again.
#[derive(Debug)]
struct Told {
    name: String,
    stale: bool,
}

impl Names {
    /// Has all told anew.
    pub fn forget(&mut self) {
        self.told.values_mut().for_each(|told| told.stale = true);
        self.began = None;
    }

    /// Up to `most` names that were not told yet; they then were. An empty one says that a namespace is gone: the kernel gives
    /// its number again.
    pub fn news<'n>(
        &mut self,
        namespaces: impl Iterator<Item = &'n Namespace>,
        most: usize,
        now: Instant,
    ) -> Vec<NamespaceName> {
        if self.began.is_none_or(|began| now.duration_since(began) >= AGAIN) {
            self.forget();
            self.began = Some(now);
        }
        let (mut there, mut news) = (BTreeMap::new(), Vec::new());
        for namespace in namespaces {
            let (netns, name) = (namespace.netns(), called(namespace));
            let told = self.told.remove(&netns);
            let is_news = told.as_ref().is_none_or(|told| told.stale || told.name != name);
            if is_news && news.len() < most {
                there.insert(netns, Told { name: name.clone(), stale: false });
                news.push(NamespaceName { netns, name });
            } else if let Some(told) = told {
                there.insert(netns, told);
            }
        }
        for (netns, told) in std::mem::replace(&mut self.told, there) {
            if news.len() < most {
                news.push(NamespaceName { netns, name: String::new() });
            } else {
                self.told.insert(netns, told);
            }
        }
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
    fn a_name_is_told_when_it_is_new_when_it_changed_and_when_it_is_gone_and_again_after_an_hour() {
        let (mut names, begun) = (Names::default(), Instant::now());
        let mut told = |namespaces: &[(u64, &str)], most, minutes: u64| {
            let there: Vec<Namespace> =
                namespaces.iter().map(|(netns, name)| Namespace::called(*netns, name)).collect();
            let told = names.news(there.iter(), most, begun + Duration::from_secs(60 * minutes));
            told.into_iter().map(|one| (one.netns, one.name)).collect::<Vec<_>>()
        };
        let one = |netns, name: &str| vec![(netns, name.to_owned())];
        assert_eq!(told(&[(7, "blue"), (9, "")], 1, 0), one(7, "blue"));
        assert_eq!(told(&[(7, "blue"), (9, "")], 1, 0), one(9, "net:[9]"));
        assert_eq!(told(&[(7, "blue"), (9, "")], 1, 0), []);
        assert_eq!(told(&[(7, "red"), (9, "")], 0, 0), []);
        assert_eq!(told(&[(7, "red"), (9, "")], 5, 1), one(7, "red"));
        assert_eq!(told(&[(9, "")], 0, 1), []);
        assert_eq!(told(&[(9, "")], 5, 1), one(7, ""));
        assert_eq!(told(&[(7, "red"), (9, "")], 5, 59), one(7, "red"));
        assert_eq!(told(&[(7, "red")], 1, 61), one(7, "red"), "all is told again after an hour");
        assert_eq!(told(&[(7, "red")], 1, 62), one(9, ""));
        names.forget();
        assert_eq!(names.news([Namespace::called(7, "red")].iter(), 5, begun).len(), 1);
    }
}
