use super::*;

fn changes(text: &str) -> Vec<String> {
    sites_of("a.rs", text).expect("it parses").into_iter().map(|site| site.change).collect()
}

/// The changes inside a function that gives back a number.
fn inside(body: &str) -> Vec<String> {
    changes(&format!("fn f(a: i64, b: Option<i64>) -> i64 {{ {body} }}"))
}

#[test]
fn operators_and_numbers_change() {
    assert_eq!(inside("a + b"), ["`+` → `-` in `a + b`"]);
    assert_eq!(inside("a < b"), ["`<` → `<=` in `a < b`", "`<` → `>=` in `a < b`"]);
    assert_eq!(inside("7_i64"), ["`7_i64` → `8`", "`7_i64` → `6`"]);
    assert_eq!(inside("0"), ["`0` → `1`"]);
    assert_eq!(inside("g(true)"), ["`true` → `false`"]);
    assert_eq!(inside("!a"), ["without `!` in `!a`"]);
    assert_eq!(inside("a.max(b)"), ["`max` → `min` in `a.max(b)`"]);
    assert_eq!(inside("a.is_empty()"), ["`!` before `a.is_empty()`"]);
    assert_eq!(inside("matches!(a, 1 | 2)"), ["`!` before `matches!(a, 1 | 2)`"]);
    assert_eq!(inside("a += b;"), ["not done: `a += b;`", "`+=` → `-=` in `a += b`"]);
}

#[test]
fn conditions_are_forced() {
    let plain = ["`if true` for `a`", "`if false` for `a`"];
    assert_eq!(inside("if a { b } else { c }"), plain);
    assert_eq!(inside("match b { Some(_) if a => c, _ => d }"), plain);
    // Both ways would hang it, or bind nothing.
    assert_eq!(inside("while a { g(); }")[0], "`if false` for `a`");
    assert_eq!(inside("if let Some(c) = b && c { c } else { a }"), ["never `let Some(c) = b && c`"]);
}

#[test]
fn functions_give_back_what_is_easiest() {
    assert_eq!(changes("fn f() -> bool { g() }"), ["always true", "always false"]);
    assert_eq!(changes("fn f() -> bool { true }"), ["always false", "`true` → `false`"]);
    assert_eq!(changes("fn f() { g() }"), ["does nothing"]);
    assert_eq!(changes("fn f() {}"), [""; 0]);
    assert_eq!(changes("fn f() -> Result<(), E> { g() }"), ["always `Ok(())`"]);
    assert_eq!(
        changes("fn f() -> Option<T> { if g() { Some(h()) } else { None } }"),
        ["always `None`", "`if true` for `g()`", "`if false` for `g()`", "`Some(h())` → `None`"]
    );
}

#[test]
fn nothing_changes_where_no_switch_can_stand_or_nobody_looks() {
    for text in [
        "const A: i64 = 1 + 2; static B: bool = true; enum C { D = 1 }",
        "const fn f(a: i64) -> i64 { a + 1 }",
        "#[cfg(test)] mod tests { fn f() -> bool { 1 == 2 } }",
        "#[test] fn f() { g(1) }",
        "#[error(\"{0} + 1\")] struct A([u8; 4]);",
        "impl fmt::Display for A { fn fmt(&self) -> bool { 1 == 2 } }",
        "fn f() -> i64 { format!(\"{}\", 1 + 2) }",
        "fn f(a: [u8; 4]) -> A<3> { match a { [1, 2..=3, ..] => g::<4>(), _ => h([a; 5]) } }",
    ] {
        assert_eq!(changes(text), [""; 0], "{text}");
    }
}

#[test]
fn what_only_a_broken_rule_runs_stays() {
    assert_eq!(inside("if bug::is(Bug::R1) { a + b } else { a }"), [""; 0]);
    assert_eq!(inside("match a { _ if bug::is(Bug::R1) => 1, _ => a }"), [""; 0]);
    assert_eq!(inside("!bug::is(Bug::R1) && !bug::is(Bug::R2)"), [""; 0]);
    assert_eq!(inside("a && !bug::is(Bug::R1)"), ["`&&` → `||` in `a && !bug::is(Bug::R1)`"]);
}

#[test]
fn sites_say_where_they_are() {
    let text = "impl Timeline<'_> {\n    fn f(&self) -> i64 {\n        // ä\n        self.a - 1\n    }\n}\n";
    let sites = sites_of("a.rs", text).expect("it parses");
    let first = &sites[0];
    assert_eq!((first.line, first.function.as_str()), (4, "Timeline::f"));
    assert_eq!(&text[first.form.range()], "self.a - 1");
}

#[test]
fn a_program_is_the_same_whatever_its_tests_and_comments_say() {
    let one = program_of("fn f() {}\n#[cfg(test)] mod tests { fn a() {} }").expect("it parses");
    assert_eq!(one, program_of("// b\nfn f() { }\n#[cfg(test)] mod tests;").expect("it parses"));
    assert_ne!(one, program_of("fn f() { g() }").expect("it parses"));
}
