//! One change that could be made to a source text, and which of them a run looks at.

use std::ops::Range;

/// A change of a source file that can be switched on at run time. Positions are bytes of the file as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// Names the mutant while the sources stand as they do; from 1.
    pub(crate) id: u32,
    /// Relative to the repository.
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) function: String,
    /// What a reader is told of it.
    pub(crate) change: String,
    pub(crate) form: Form,
}

/// How a change gets into the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Another expression instead of this one.
    Expression { range: Range<usize>, mutated: String },
    /// The function is left at its first step, which is at this position.
    Entry { at: usize, leave: String },
    /// The statement is passed over.
    Statement { range: Range<usize> },
    /// An `if let` or a chain that begins at this position does not match.
    Chain { at: usize },
}

impl Form {
    /// Where it is. Empty where the change is only put in front of something.
    pub(crate) fn range(&self) -> Range<usize> {
        match self {
            Form::Expression { range, .. } | Form::Statement { range } => range.clone(),
            Form::Entry { at, .. } | Form::Chain { at } => *at..*at,
        }
    }
}

/// All sites in the order in which a run with this seed looks at them. Sites that stay what they are keep their places
/// among each other when others come and go, so that the samples of neighbouring versions are mostly the same.
pub(crate) fn in_order_of(seed: u64, sites: &[Site]) -> Vec<&Site> {
    let mut ranked: Vec<(u64, &Site)> = Vec::with_capacity(sites.len());
    let mut before = std::collections::HashMap::new();
    for site in sites {
        let name = (&site.file, &site.function, &site.change);
        let nth: &mut u64 = before.entry(name).or_default();
        *nth += 1;
        let text = format!("{seed}\t{}\t{}\t{}\t{nth}", site.file, site.function, site.change);
        ranked.push((scatter(digest(text.as_bytes())), site));
    }
    ranked.sort_by_key(|(rank, site)| (*rank, site.id));
    ranked.into_iter().map(|(_, site)| site).collect()
}

/// FNV-1a: the same in every process and version.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Close texts have close digests; this spreads them (the last step of SplitMix64).
fn scatter(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(id: u32, change: &str) -> Site {
        let form = Form::Chain { at: 0 };
        let (file, function) = ("a.rs".to_owned(), "f".to_owned());
        Site { id, file, line: 1, function, change: change.to_owned(), form }
    }

    #[test]
    fn a_seed_says_the_order_and_new_sites_do_not_change_it() {
        let sites: Vec<Site> = (1..50).map(|id| site(id, &format!("change {id}"))).collect();
        let names = |sites: &[Site], seed| -> Vec<String> {
            in_order_of(seed, sites).iter().map(|site| site.change.clone()).collect()
        };
        assert_eq!(names(&sites, 1), names(&sites, 1));
        assert_ne!(names(&sites, 1), names(&sites, 2));
        let mut more = vec![site(99, "a new one")];
        more.extend(sites.iter().cloned());
        let mut order = names(&more, 1);
        order.retain(|change| change != "a new one");
        assert_eq!(order, names(&sites, 1));
    }

    #[test]
    fn sites_that_read_alike_have_places_of_their_own() {
        let sites = [site(1, "same"), site(2, "same"), site(3, "same")];
        let orders: std::collections::BTreeSet<Vec<u32>> =
            (0..40).map(|seed| in_order_of(seed, &sites).iter().map(|site| site.id).collect()).collect();
        assert!(orders.len() > 3, "{orders:?}");
    }
}
