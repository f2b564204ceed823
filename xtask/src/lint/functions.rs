//! Long functions.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Lines of a function that is listed, at least.
pub(super) const LONG: usize = 60;

/// A function and how long it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Long {
    pub(super) lines: usize,
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) file: PathBuf,
}

/// The functions of more than [`LONG`] lines in a file, comments and blanks included.
pub(super) fn long(file: &Path, text: &str) -> Result<Vec<Long>> {
    let syntax =
        syn::parse_file(text).with_context(|| format!("cannot understand {}", file.display()))?;
    let mut found = Found { file, all: Vec::new() };
    found.visit_file(&syntax);
    Ok(found.all)
}

struct Found<'a> {
    file: &'a Path,
    all: Vec<Long>,
}

impl Found<'_> {
    fn note(&mut self, name: &syn::Ident, body: &syn::Block) {
        let (start, end) = (name.span().start().line, body.span().end().line);
        let lines = end + 1 - start;
        if lines > LONG {
            let (name, file) = (name.to_string(), self.file.to_path_buf());
            self.all.push(Long { lines, name, line: start, file });
        }
    }
}

impl<'ast> Visit<'ast> for Found<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.note(&item.sig.ident, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note(&item.sig.ident, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.note(&item.sig.ident, body);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_of_more_lines_is_named_with_its_place() {
        let body = "    x();\n".repeat(LONG - 2);
        let short = format!("fn short() {{\n{body}}}\n");
        let long_ = format!("impl X {{\nfn long() {{\n{body}    x();\n}}\n}}\n");
        let found = long(Path::new("a.rs"), &format!("{short}{long_}")).unwrap();
        let expected =
            Long { lines: LONG + 1, name: "long".into(), line: LONG + 2, file: "a.rs".into() };
        assert_eq!(found, [expected]);
    }
}
