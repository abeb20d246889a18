//! What stands in for an operator or a method.

use syn::BinOp;

/// Operators that a program would also compile with, most of the time.
pub(super) fn instead_of_operator(operator: &BinOp) -> &'static [&'static str] {
    match operator {
        BinOp::Eq(_) => &["!="],
        BinOp::Ne(_) => &["=="],
        BinOp::Lt(_) => &["<=", ">="],
        BinOp::Le(_) => &["<", ">"],
        BinOp::Gt(_) => &[">=", "<="],
        BinOp::Ge(_) => &[">", "<"],
        BinOp::And(_) => &["||"],
        BinOp::Or(_) => &["&&"],
        BinOp::Add(_) => &["-"],
        BinOp::Sub(_) => &["+"],
        BinOp::Mul(_) => &["+"],
        BinOp::Div(_) => &["*"],
        BinOp::BitAnd(_) => &["|"],
        BinOp::BitOr(_) | BinOp::BitXor(_) => &["&"],
        BinOp::Shl(_) => &[">>"],
        BinOp::Shr(_) => &["<<"],
        BinOp::AddAssign(_) => &["-="],
        BinOp::SubAssign(_) => &["+="],
        BinOp::BitOrAssign(_) => &["&="],
        BinOp::BitAndAssign(_) => &["|="],
        _ => &[],
    }
}

/// A method with the same arguments and the opposite meaning.
pub(super) fn instead_of_method(name: &str) -> Option<&'static str> {
    Some(match name {
        "max" => "min",
        "min" => "max",
        "any" => "all",
        "all" => "any",
        "is_some" => "is_none",
        "is_none" => "is_some",
        "is_some_and" => "is_none_or",
        "is_none_or" => "is_some_and",
        "is_ok" => "is_err",
        "is_err" => "is_ok",
        "checked_add" => "checked_sub",
        "checked_sub" => "checked_add",
        "saturating_add" => "saturating_sub",
        "saturating_sub" => "saturating_add",
        _ => return None,
    })
}

/// A method of a collection that answers yes or no.
pub(super) fn is_question(name: &str) -> bool {
    matches!(name, "is_empty" | "contains" | "contains_key" | "starts_with" | "ends_with")
}
