//! Puts the changes into a text, each behind its switch: `if crate::crossover_mutant(7) { changed } else { as it was }`.
//! Lines stay where they are.

use crate::site::{Form, Site};
use std::ops::Range;

/// What the switches ask; it is put into the root of the crate. 0 is no mutant.
pub(crate) const SWITCH: &str = r#"
#[doc(hidden)]
pub fn crossover_mutant(id: u32) -> bool {
    static CHOSEN: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let chosen = || std::env::var("CROSSOVER_MUTANT").ok().and_then(|id| id.parse().ok()).unwrap_or(0);
    *CHOSEN.get_or_init(chosen) == id
}
"#;

/// A text with switches, and where they are in it.
pub(crate) struct Instrumented {
    pub(crate) text: String,
    /// What stands behind the switches of some sites, in bytes of the new text.
    pub(crate) spans: Vec<(Range<usize>, Vec<u32>)>,
}

/// All sites of one range.
struct Group<'a> {
    range: Range<usize>,
    sites: Vec<&'a Site>,
}

/// The sites are those of this text.
pub(crate) fn instrument(text: &str, sites: &[&Site]) -> Instrumented {
    let groups = group(sites);
    let mut cuts: Vec<Cut<'_>> = groups.iter().flat_map(cuts).collect();
    cuts.sort_by_key(|cut| cut.order);
    let (mut out, mut copied) = (String::with_capacity(text.len() * 2), 0);
    let mut begun: Vec<(*const Group<'_>, usize)> = Vec::new();
    let mut spans = Vec::new();
    for cut in cuts {
        out.push_str(&text[copied..cut.order.0]);
        copied = cut.order.0;
        let at = out.len();
        out.push_str(&cut.text);
        let ids = || cut.group.sites.iter().map(|site| site.id).collect();
        match cut.side {
            Side::Open => begun.push((cut.group, at)),
            Side::Whole => spans.push((at..out.len(), ids())),
            Side::Close => {
                // They nest, so what is closed is what was begun last.
                let start = begun.pop().map_or(at, |(_, start)| start);
                spans.push((start..out.len(), ids()));
            }
        }
    }
    out.push_str(&text[copied..]);
    Instrumented { text: out, spans }
}

fn group<'a>(sites: &[&'a Site]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for site in sites {
        let range = site.form.range();
        match groups.iter_mut().find(|group| group.range == range) {
            Some(group) => group.sites.push(site),
            None => groups.push(Group { range, sites: vec![site] }),
        }
    }
    groups
}

enum Side {
    Open,
    Close,
    /// Both in one.
    Whole,
}

/// A piece that is put into the text.
struct Cut<'a> {
    /// The position; then closing before opening; then inner before outer when closing, and the other way round.
    order: (usize, bool, isize),
    text: String,
    side: Side,
    group: &'a Group<'a>,
}

fn cuts<'a>(group: &'a Group<'a>) -> Vec<Cut<'a>> {
    let Range { start, end } = group.range;
    let length = (end - start) as isize;
    if length == 0 {
        let text = group.sites.iter().map(|site| in_front(site)).collect();
        return vec![Cut { order: (start, true, isize::MIN), text, side: Side::Whole, group }];
    }
    let (open, close) = around(&group.sites);
    vec![
        Cut { order: (start, true, -length), text: open, side: Side::Open, group },
        Cut { order: (end, false, length), text: close, side: Side::Close, group },
    ]
}

fn in_front(site: &Site) -> String {
    let id = site.id;
    match &site.form {
        Form::Entry { leave, .. } => format!(" if crate::crossover_mutant({id}) {{ {leave} }} "),
        _ => format!("!crate::crossover_mutant({id}) && "),
    }
}

/// What stands before and behind an expression or a statement with these changes.
fn around(sites: &[&Site]) -> (String, String) {
    let (mut open, mut close) = (String::new(), "");
    for site in sites {
        let id = site.id;
        let Form::Expression { mutated, .. } = &site.form else {
            return (format!("if !crate::crossover_mutant({id}) {{ "), " }".to_owned());
        };
        open.push_str(if open.is_empty() { "(if" } else { " else if" });
        open.push_str(&format!(" crate::crossover_mutant({id}) {{ {mutated} }}"));
        close = " })";
    }
    open.push_str(" else { ");
    (open, close.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enumerate::sites_of;

    /// Every change of a text at once.
    fn all(text: &str) -> Instrumented {
        let mut sites = sites_of("a.rs", text).expect("it parses");
        (1..).zip(&mut sites).for_each(|(id, site)| site.id = id);
        instrument(text, &sites.iter().collect::<Vec<_>>())
    }

    #[test]
    fn switches_nest_and_lines_stay() {
        let text = "fn f(a: i32, b: i32) -> i32 {\n    let c = a + b;\n    c\n}\n";
        let with = all(text);
        let middle = "    let c = (if crate::crossover_mutant(1) { (a) - (b) } else { a + b });".to_owned();
        assert_eq!(with.text.lines().nth(1), Some(&*middle));
        assert_eq!(with.text.lines().count(), text.lines().count());
        let (range, ids) = &with.spans[0];
        assert_eq!((&with.text[range.clone()], &ids[..]), (&middle[12..middle.len() - 1], &[1][..]));
    }

    /// The whole way: a crate with every switch is built, and each mutant does what it says.
    #[test]
    fn what_is_switched_on_is_what_runs() {
        let text = "fn small(a: i64) -> bool { a + 1 < 3 && !(a == 0) }\n\
            fn half(a: Option<i64>) -> Option<i64> { if let Some(a) = a && a > 1 { return Some(a / 2); } None }\n\
            fn main() {\n    let mut seen = Vec::new();\n    seen.push(small(1));\n\
            \x20   println!(\"{} {seen:?} {:?}\", small(2), half(Some(4)));\n}\n";
        let sites = sites_of("a.rs", text).expect("it parses");
        let directory = std::env::temp_dir().join(format!("crossover-mutants-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let source = directory.join("a.rs");
        std::fs::write(&source, all(text).text + SWITCH).expect("written");
        let program = directory.join("a");
        let mut rustc = std::process::Command::new("rustc");
        rustc.args(["--edition", "2024", "--cap-lints", "allow", "-o"]).arg(&program).arg(&source);
        let built = rustc.output().expect("rustc runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let say = |id: usize| {
            let ran = std::process::Command::new(&program).env("CROSSOVER_MUTANT", id.to_string()).output();
            String::from_utf8_lossy(&ran.expect("it runs").stdout).into_owned()
        };
        assert_eq!(say(0), "false [true] Some(2)\n");
        let mut differ = Vec::new();
        for (id, site) in (1..).zip(&sites) {
            if say(id) != say(0) {
                differ.push(site.change.as_str());
            }
        }
        for change in [
            "always true",
            "always false",
            "`&&` → `||` in `a + 1 < 3 && !(a == 0)`",
            "never `let Some(a) = a && a > 1`",
            "not done: `seen.push(small(1));`",
            "`Some(a / 2)` → `None`",
        ] {
            assert!(differ.contains(&change), "{change} of {differ:?}");
        }
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
