//! "Did you mean": the known words that resemble a misspelt one.

/// Most words that are suggested.
const SUGGESTIONS_LIMIT: usize = 3;

/// The words that resemble `wanted`, the closest first, at most three.
pub fn similar<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let lower = wanted.to_lowercase();
    let far = (wanted.chars().count() / 3).clamp(1, 3);
    let mut close: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|word| {
            let candidate = word.to_lowercase();
            let distance = distance(&lower, &candidate);
            let begins = lower.len() >= 2 && candidate.starts_with(&lower);
            (distance <= far || begins).then_some((distance.min(if begins { far } else { usize::MAX }), word))
        })
        .collect();
    close.sort_unstable();
    close.dedup();
    close.into_iter().take(SUGGESTIONS_LIMIT).map(|(_, word)| word).collect()
}

/// `did you mean a, b or c?`; nothing when nothing resembles it.
pub fn did_you_mean(similar: &[&str]) -> Option<String> {
    let (last, others) = similar.split_last()?;
    Some(match others {
        [] => format!("did you mean {last}?"),
        others => format!("did you mean {} or {last}?", others.join(", ")),
    })
}

/// Optimal string alignment distance: insertions, deletions, replacements, and swaps of neighbours.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![(0..=right.len()).collect::<Vec<usize>>()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_meant_and_nonsense_finds_none() {
        let hosts = ["web1", "web2", "db7", "gateway-01"];
        assert_eq!(similar("web9", hosts), ["web1", "web2"]);
        assert_eq!(similar("WBE1", hosts), ["web1"]);
        assert_eq!(similar("gatway-01", hosts), ["gateway-01"]);
        assert_eq!(similar("gate", hosts), ["gateway-01"]);
        assert!(similar("printer", hosts).is_empty());
        assert!(similar("", hosts).is_empty());
    }

    #[test]
    fn suggestions_read_as_a_sentence() {
        assert_eq!(did_you_mean(&[]), None);
        assert_eq!(did_you_mean(&["a"]).unwrap(), "did you mean a?");
        assert_eq!(did_you_mean(&["a", "b", "c"]).unwrap(), "did you mean a, b or c?");
    }
}
