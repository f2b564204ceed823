//! Files of a crate that use each other in a circle.
//!
//! A file uses another one if a path in it leads to what the other defines: imports and
//! `pub use` are followed to the definition. Paths that lead to a module only, to what a file's
//! own ancestors define (a parent and its children are one thing in several files), and
//! everything that is there for tests do not count. Methods are not paths: what is used through a
//! value was named where the value came from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// The meaning of a name in a module.
#[derive(Debug, Clone)]
enum Name {
    /// It is defined here.
    Here,
    /// A module, by its number.
    Module(usize),
    /// The thing to which this path leads, seen from the module where it stands.
    Import(Vec<String>),
}

#[derive(Debug)]
struct Module {
    parent: Option<usize>,
    /// The number of its file.
    file: usize,
    names: BTreeMap<String, Name>,
    /// Paths of `use …::*`.
    globs: Vec<Vec<String>>,
    /// Paths that its items use.
    paths: Vec<Vec<String>>,
}

/// The files of one crate, and who uses whom.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: Vec<PathBuf>,
    modules: Vec<Module>,
}

/// The end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Module(usize),
    /// Something that is defined in this module.
    In(usize),
}

/// Imports are followed so many times at most: some name each other.
const DEPTH: usize = 32;

impl Files {
    /// Reads a crate from its first file.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut files = Self::default();
        let folder = root.parent().unwrap_or(root).to_path_buf();
        files.module(root, &folder, None)?;
        Ok(files)
    }

    /// Reads a module's file; its children's files are in `folder`.
    fn module(&mut self, path: &Path, folder: &Path, parent: Option<usize>) -> Result<usize> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let syntax = syn::parse_file(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        self.files.push(path.to_path_buf());
        let file = self.files.len() - 1;
        let module = self.add(parent, file);
        self.items(module, &syntax.items, folder)?;
        Ok(module)
    }

    fn add(&mut self, parent: Option<usize>, file: usize) -> usize {
        let (names, globs, paths) = (BTreeMap::new(), Vec::new(), Vec::new());
        self.modules.push(Module { parent, file, names, globs, paths });
        self.modules.len() - 1
    }

    fn items(&mut self, module: usize, items: &[Item], folder: &Path) -> Result<()> {
        for item in items.iter().filter(|item| !is_for_tests(attributes(item))) {
            if let Item::Mod(child) = item {
                let name = child.ident.to_string();
                let folder = folder.join(&name);
                let number = match &child.content {
                    Some((_, items)) => {
                        let number = self.add(Some(module), self.modules[module].file);
                        self.items(number, items, &folder)?;
                        number
                    }
                    None => {
                        let beside = folder.with_extension("rs");
                        let path = if beside.exists() { beside } else { folder.join("mod.rs") };
                        self.module(&path, &folder, Some(module))?
                    }
                };
                self.modules[module].names.insert(name, Name::Module(number));
                continue;
            }
            if let Some(name) = defines(item) {
                self.modules[module].names.insert(name, Name::Here);
            }
            Paths { module: &mut self.modules[module] }.visit_item(item);
        }
        Ok(())
    }

    /// Follows a path from a module on. `None`: it leads out of the crate, or to nothing that is
    /// known here.
    fn follow(&self, from: usize, path: &[String], depth: usize) -> Option<Place> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" | "$crate" => Place::Module(0),
            "self" => Place::Module(from),
            "super" => Place::Module(self.modules[from].parent?),
            name => self.name(from, name, depth)?,
        };
        while let (Place::Module(module), Some((name, more))) = (at, rest.split_first()) {
            at = match name.as_str() {
                "self" => at,
                "super" => Place::Module(self.modules[module].parent?),
                name => self.name(module, name, depth)?,
            };
            rest = more;
        }
        Some(at)
    }

    /// The meaning of a name in a module.
    fn name(&self, module: usize, name: &str, depth: usize) -> Option<Place> {
        if depth == DEPTH {
            return None;
        }
        match self.modules[module].names.get(name) {
            Some(Name::Here) => Some(Place::In(module)),
            Some(Name::Module(number)) => Some(Place::Module(*number)),
            Some(Name::Import(path)) if path.len() == 1 && path[0] == name => None,
            Some(Name::Import(path)) => self.follow(module, path, depth + 1),
            None => self.modules[module].globs.iter().find_map(|glob| {
                match self.follow(module, glob, depth + 1)? {
                    Place::Module(other) if other != module => self.name(other, name, depth + 1),
                    _ => None,
                }
            }),
        }
    }

    fn is_ancestor(&self, ancestor: usize, module: usize) -> bool {
        let parents = std::iter::successors(Some(module), |module| self.modules[*module].parent);
        parents.skip(1).any(|parent| self.modules[parent].file == self.modules[ancestor].file)
    }

    /// Which files each file uses, by number.
    fn uses(&self) -> Vec<BTreeSet<usize>> {
        let mut uses = vec![BTreeSet::new(); self.files.len()];
        for (number, module) in self.modules.iter().enumerate() {
            let imports = module.names.values().filter_map(|name| match name {
                Name::Import(path) => Some(path),
                Name::Here | Name::Module(_) => None,
            });
            for path in module.paths.iter().chain(imports) {
                if let Some(Place::In(other)) = self.follow(number, path, 0)
                    && self.modules[other].file != module.file
                    && !self.is_ancestor(other, number)
                {
                    uses[module.file].insert(self.modules[other].file);
                }
            }
        }
        uses
    }

    /// The circles: groups of files of which each reaches each other one.
    pub(super) fn circles(&self) -> Vec<Vec<&Path>> {
        let uses = self.uses();
        let reach: Vec<BTreeSet<usize>> = (0..uses.len()).map(|from| reach(&uses, from)).collect();
        let mut circles: BTreeSet<Vec<usize>> = BTreeSet::new();
        for (file, reached) in
            reach.iter().enumerate().filter(|(file, reached)| reached.contains(file))
        {
            let circle = reached.iter().copied().filter(|other| reach[*other].contains(&file));
            circles.insert(circle.collect());
        }
        circles
            .into_iter()
            .map(|circle| circle.into_iter().map(|file| self.files[file].as_path()).collect())
            .collect()
    }
}

fn reach(uses: &[BTreeSet<usize>], from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<usize> = uses[from].iter().copied().collect();
    while let Some(file) = open.pop() {
        if reached.insert(file) {
            open.extend(uses[file].iter().copied());
        }
    }
    reached
}

/// Collects what a module's items import and use.
struct Paths<'a> {
    module: &'a mut Module,
}

impl Paths<'_> {
    fn import(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| {
            let mut path = before.to_vec();
            path.push(name.to_string());
            path
        };
        match tree {
            UseTree::Path(path) => self.import(&with(&path.ident), &path.tree),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(before, tree);
                }
            }
            UseTree::Glob(_) => self.module.globs.push(before.to_vec()),
            UseTree::Name(name) if name.ident == "self" => {
                if let Some(last) = before.last() {
                    self.module.names.insert(last.clone(), Name::Import(before.to_vec()));
                }
            }
            UseTree::Name(name) => {
                let path = with(&name.ident);
                self.module.names.insert(name.ident.to_string(), Name::Import(path));
            }
            UseTree::Rename(rename) => {
                let path =
                    if rename.ident == "self" { before.to_vec() } else { with(&rename.ident) };
                self.module.names.insert(rename.rename.to_string(), Name::Import(path));
            }
        }
    }

    /// Paths in what a macro was given: words between `::`.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        let mut paths = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        paths.push(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    paths.push(std::mem::take(&mut path));
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    paths.push(std::mem::take(&mut path));
                    colons = 0;
                }
            }
        }
        paths.push(path);
        self.module.paths.extend(paths.into_iter().filter(|path| !path.is_empty()));
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.import(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.module.paths.push(names);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, macro_: &'ast syn::Macro) {
        self.tokens(macro_.tokens.clone());
        visit::visit_macro(self, macro_);
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

/// The name that an item defines in its module.
fn defines(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether `cfg` lets it be in tests only.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let text = list.tokens.to_string();
        let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.clone().any(|word| word == "test") && !words.any(|word| word == "not")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles of a crate of these files, by their names.
    fn circles(name: &str, files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let dir = std::env::temp_dir().join(format!("steward-lint-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let read = Files::read(&dir.join("lib.rs")).unwrap();
        let name = |path: &&Path| path.strip_prefix(&dir).unwrap().display().to_string();
        let circles =
            read.circles().iter().map(|circle| circle.iter().map(name).collect()).collect();
        fs::remove_dir_all(&dir).unwrap();
        circles
    }

    #[test]
    fn two_files_that_name_each_other_are_a_circle() {
        let found = circles(
            "two",
            &[
                ("lib.rs", "mod a; mod b; mod c;"),
                ("a.rs", "use crate::b::B; pub struct A(B);"),
                ("b.rs", "pub struct B; impl B { fn f() { super::a::A::g() } }"),
                ("c.rs", "use crate::a::A; use crate::b::B; fn f(_: A, _: B) {}"),
            ],
        );
        assert_eq!(found, [["a.rs", "b.rs"]]);
    }

    #[test]
    fn a_re_export_is_followed_to_the_definition() {
        // `a` uses what `b::deep` defines, and only `b` itself uses `a`.
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::{Deep, deep}; pub struct A(Deep, deep::Other);"),
            ("b/mod.rs", "pub mod deep; pub use deep::Deep; use crate::a::A; fn f(_: A) {}"),
            ("b/deep.rs", "pub struct Deep; pub struct Other;"),
        ];
        assert_eq!(circles("re-export", &files), [[""; 0]; 0]);
        let mut files = files;
        files[3].1 = "pub struct Deep; pub struct Other; fn g(_: crate::a::A) {}";
        assert_eq!(circles("re-export", &files), [["a.rs", "b/deep.rs"]]);
    }

    #[test]
    fn globs_macros_and_renames_count() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::*; pub fn a() { B; }"),
            ("b.rs", "pub const B: u8 = 1; fn f() { println!(\"{}\", crate::c::C); }"),
            ("c.rs", "use super::a as other; pub const C: u8 = 2; fn f() { other::a() }"),
        ];
        assert_eq!(circles("globs", &files), [["a.rs", "b.rs", "c.rs"]]);
    }

    #[test]
    fn parents_and_tests_do_not_count() {
        let files = [
            ("lib.rs", "mod a;"),
            ("a.rs", "mod child; pub struct A; use child::C; fn f(_: C) {}"),
            ("a/child.rs", "use super::A; pub struct C(A);"),
        ];
        assert_eq!(circles("parents", &files), [[""; 0]; 0]);
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::B; pub struct A(B);"),
            ("b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }"),
        ];
        assert_eq!(circles("tests", &files), [[""; 0]; 0]);
        let files =
            [files[0], files[1], ("b.rs", "pub struct B; #[cfg(not(test))] use crate::a::A;")];
        assert_eq!(circles("tests", &files), [["a.rs", "b.rs"]]);
    }
}
