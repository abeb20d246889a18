//! Finds the changes of a source text that can be made at run time.
//!
//! Left out: tests, constants, types, patterns and attributes (no switch can stand there), macros except `matches!`
//! (texts for people, mostly), and what only a rule that is broken on purpose would run (`bug::is`).

mod operators;

use crate::site::{Form, Site};
use anyhow::{Context, Result};
use operators::{instead_of_method, instead_of_operator};
use quote::{ToTokens, quote};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, BinOp, Block, Expr, Lit, ReturnType, Signature, Stmt, Type, UnOp};

/// The sites of one file in the order of its text; they have no numbers yet.
///
/// # Errors
/// For a text that is not Rust.
pub(crate) fn sites_of(file: &str, text: &str) -> Result<Vec<Site>> {
    let parsed = syn::parse_file(text).with_context(|| format!("{file} is not Rust"))?;
    let mut finder = Finder { file, text, path: Vec::new(), sites: Vec::new() };
    finder.visit_file(&parsed);
    let mut sites = finder.sites;
    sites.sort_by_key(|site| site.form.range().start);
    Ok(sites)
}

/// The text without its tests and comments, as one line. Two texts with the same are the same program.
///
/// # Errors
/// For a text that is not Rust.
pub(crate) fn program_of(text: &str) -> Result<String> {
    let parsed = syn::parse_file(text)?;
    let items = parsed.items.iter().filter(|item| match item {
        syn::Item::Mod(module) => !is_for_tests(&module.attrs),
        syn::Item::Fn(function) => !is_for_tests(&function.attrs),
        _ => true,
    });
    Ok(items.map(|item| item.to_token_stream().to_string()).collect::<Vec<_>>().join("\n"))
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        text.contains("test") || text.contains("bug-flags")
    })
}

struct Finder<'a> {
    file: &'a str,
    text: &'a str,
    /// The type and the functions around.
    path: Vec<String>,
    sites: Vec<Site>,
}

impl Finder<'_> {
    fn add(&mut self, line: usize, change: String, form: Form) {
        let function = self.path.join("::");
        self.sites.push(Site { id: 0, file: self.file.to_owned(), line, function, change, form });
    }

    fn replace(&mut self, old: &impl Spanned, change: String, mutated: String) {
        let range = old.span().byte_range();
        self.add(old.span().start().line, change, Form::Expression { range, mutated });
    }

    /// The text of something, short and in one line.
    fn shown(&self, what: &impl Spanned) -> String {
        let words: Vec<&str> = self.text[what.span().byte_range()].split_whitespace().collect();
        let text = words.join(" ");
        match text.char_indices().nth(90) {
            Some((at, _)) => format!("`{}…`", &text[..at]),
            None => format!("`{text}`"),
        }
    }

    fn function(&mut self, signature: &Signature, body: &Block) {
        // The compiler runs these.
        if signature.constness.is_some() || signature.ident == "fmt" {
            return;
        }
        self.path.push(signature.ident.to_string());
        let at = body.brace_token.span.open().byte_range().end;
        let line = signature.ident.span().start().line;
        for &(change, value) in constant_results(&signature.output) {
            if body.stmts.is_empty() || is_just(body, value) {
                continue;
            }
            self.add(line, change.to_owned(), Form::Entry { at, leave: format!("return {value};") });
        }
        if let Some(Stmt::Expr(last, None)) = body.stmts.last() {
            self.result(last);
        }
        visit::visit_block(self, body);
        self.path.pop();
    }

    /// An expression whose value is that of the function.
    fn result(&mut self, value: &Expr) {
        let last = |block: &Block| match block.stmts.last() {
            Some(Stmt::Expr(last, None)) => Some(last.clone()),
            _ => None,
        };
        match value {
            Expr::If(choice) if !needs_bug(&choice.cond) => {
                last(&choice.then_branch).iter().for_each(|value| self.result(value));
                choice.else_branch.iter().for_each(|(_, value)| self.result(value));
            }
            Expr::Block(block) => last(&block.block).iter().for_each(|value| self.result(value)),
            Expr::Match(choice) => {
                let arms = choice.arms.iter().filter(|arm| !is_dead(arm));
                arms.for_each(|arm| self.result(&arm.body));
            }
            Expr::Call(call) if is_path(&call.func, "Some") => {
                self.replace(value, format!("{} → `None`", self.shown(value)), "None".to_owned());
            }
            _ => {}
        }
    }

    fn condition(&mut self, condition: &Expr, values: &[bool]) {
        if has_let(condition) {
            let span = condition.span();
            let change = format!("never {}", self.shown(condition));
            self.add(span.start().line, change, Form::Chain { at: span.byte_range().start });
            return;
        }
        for value in values {
            self.replace(condition, format!("`if {value}` for {}", self.shown(condition)), value.to_string());
        }
    }

    fn integer(&mut self, literal: &syn::LitInt) {
        let Ok(value) = literal.base10_parse::<u128>() else { return };
        let suffix = literal.suffix();
        for other in [value.checked_add(1), value.checked_sub(1)].into_iter().flatten() {
            self.replace(literal, format!("`{literal}` → `{other}`"), format!("{other}{suffix}"));
        }
    }
}

/// What a function could give back whatever it is asked, and how a reader is told.
fn constant_results(output: &ReturnType) -> &'static [(&'static str, &'static str)] {
    let ReturnType::Type(_, output) = output else { return &[("does nothing", "")] };
    let text = output.to_token_stream().to_string();
    match &**output {
        _ if text == "bool" => &[("always true", "true"), ("always false", "false")],
        _ if text.starts_with("Result < () ") => &[("always `Ok(())`", "Ok(())")],
        Type::Path(_) if text.starts_with("Option <") => &[("always `None`", "None")],
        Type::Path(_) if text.starts_with("Vec <") => &[("always empty", "Vec::new()")],
        _ => &[],
    }
}

/// The body says nothing else already.
fn is_just(body: &Block, value: &str) -> bool {
    matches!(&body.stmts[..], [Stmt::Expr(only, None)] if tight(only) == value)
}

fn tight(what: &impl ToTokens) -> String {
    what.to_token_stream().to_string().replace(' ', "")
}

fn is_path(expression: &Expr, name: &str) -> bool {
    matches!(expression, Expr::Path(path) if tight(path) == name)
}

fn is_bug_switch(expression: &Expr) -> bool {
    matches!(expression, Expr::Call(call) if is_path(&call.func, "bug::is"))
}

fn is_or_is_not_bug_switch(expression: &Expr) -> bool {
    match expression {
        Expr::Unary(unary) => is_bug_switch(&unary.expr),
        other => is_bug_switch(other),
    }
}

/// True only when a rule is broken on purpose.
fn needs_bug(condition: &Expr) -> bool {
    match condition {
        Expr::Paren(inner) => needs_bug(&inner.expr),
        Expr::Binary(both) if matches!(both.op, BinOp::And(_)) => {
            needs_bug(&both.left) || needs_bug(&both.right)
        }
        other => is_bug_switch(other),
    }
}

fn is_dead(arm: &syn::Arm) -> bool {
    arm.guard.as_ref().is_some_and(|(_, guard)| needs_bug(guard))
}

/// It binds something, so that it has to stand directly in its `if`.
fn has_let(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(both) if matches!(both.op, BinOp::And(_)) => has_let(&both.left) || has_let(&both.right),
        _ => false,
    }
}

fn is_assignment(operator: &BinOp) -> bool {
    tight(operator).ends_with('=') && !matches!(tight(operator).as_str(), "==" | "!=" | "<=" | ">=")
}

/// A statement that is there for what it does.
fn is_deed(expression: &Expr) -> bool {
    match expression {
        Expr::Call(call) => !is_path(&call.func, "drop"),
        Expr::Binary(binary) => is_assignment(&binary.op),
        Expr::MethodCall(_) | Expr::Assign(_) => true,
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            self.function(&item.sig, &item.block);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_for_tests(&item.attrs) {
            self.path.push(tight(&item.self_ty).split('<').next().unwrap_or_default().to_owned());
            visit::visit_item_impl(self, item);
            self.path.pop();
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            self.function(&item.sig, &item.block);
        }
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.function(&item.sig, body);
        }
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_item_enum(&mut self, _: &'ast syn::ItemEnum) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_type(&mut self, _: &'ast Type) {}
    fn visit_generic_argument(&mut self, _: &'ast syn::GenericArgument) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_expr_repeat(&mut self, repeat: &'ast syn::ExprRepeat) {
        self.visit_expr(&repeat.expr);
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if let Stmt::Expr(deed, Some(_)) = statement
            && is_deed(deed)
        {
            let span = statement.span();
            let change = format!("not done: {}", self.shown(statement));
            self.add(span.start().line, change, Form::Statement { range: span.byte_range() });
        }
        visit::visit_stmt(self, statement);
    }

    fn visit_expr_if(&mut self, choice: &'ast syn::ExprIf) {
        if needs_bug(&choice.cond) {
            choice.else_branch.iter().for_each(|(_, other)| self.visit_expr(other));
            return;
        }
        self.condition(&choice.cond, &[true, false]);
        visit::visit_expr_if(self, choice);
    }

    fn visit_expr_while(&mut self, repeated: &'ast syn::ExprWhile) {
        // Always true would only hang.
        self.condition(&repeated.cond, &[false]);
        visit::visit_expr_while(self, repeated);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if is_dead(arm) {
            return;
        }
        if let Some((_, guard)) = &arm.guard {
            self.condition(guard, &[true, false]);
        }
        visit::visit_arm(self, arm);
    }

    fn visit_expr_return(&mut self, back: &'ast syn::ExprReturn) {
        back.expr.iter().for_each(|value| self.result(value));
        visit::visit_expr_return(self, back);
    }

    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        let is_for_bugs = is_or_is_not_bug_switch(&binary.left) && is_or_is_not_bug_switch(&binary.right);
        if !has_let(&binary.left) && !has_let(&binary.right) && !is_for_bugs {
            let (left, right) = (binary.left.to_token_stream(), binary.right.to_token_stream());
            let whole = self.shown(binary);
            for other in instead_of_operator(&binary.op) {
                let change = format!("`{}` → `{other}` in {whole}", tight(&binary.op));
                self.replace(binary, change, format!("({left}) {other} ({right})"));
            }
        }
        visit::visit_expr_binary(self, binary);
    }

    fn visit_expr_unary(&mut self, unary: &'ast syn::ExprUnary) {
        if matches!(unary.op, UnOp::Not(_)) {
            if is_bug_switch(&unary.expr) {
                return;
            }
            let change = format!("without `!` in {}", self.shown(unary));
            self.replace(unary, change, unary.expr.to_token_stream().to_string());
        }
        visit::visit_expr_unary(self, unary);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let name = call.method.to_string();
        if let Some(other) = instead_of_method(&name) {
            let mut mutated = call.clone();
            mutated.method = syn::Ident::new(other, call.method.span());
            let change = format!("`{name}` → `{other}` in {}", self.shown(call));
            self.replace(call, change, mutated.to_token_stream().to_string());
        } else if operators::is_question(&name) {
            self.replace(call, format!("`!` before {}", self.shown(call)), format!("!{}", quote!((#call))));
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_macro(&mut self, call: &'ast syn::ExprMacro) {
        if call.mac.path.is_ident("matches") {
            self.replace(call, format!("`!` before {}", self.shown(call)), format!("!({})", quote!(#call)));
        }
    }

    fn visit_expr_lit(&mut self, literal: &'ast syn::ExprLit) {
        match &literal.lit {
            Lit::Bool(value) => {
                let other = !value.value;
                self.replace(literal, format!("`{}` → `{other}`", value.value), other.to_string());
            }
            Lit::Int(number) => self.integer(number),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
