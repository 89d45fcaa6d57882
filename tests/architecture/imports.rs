//! What the files of a crate import, from their syntax trees.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, Macro, UseTree, Visibility};

/// A path from the root of the crate, of a module or of what is in one: `pack/row`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub Vec<String>);

impl Name {
    /// The top-level module that this lies in; `None` for the crate's root.
    pub fn room(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }

    fn within(&self, other: &Name) -> bool {
        self.0.starts_with(&other.0)
    }

    fn join(&self, rest: &[String]) -> Name {
        Name([&self.0[..], rest].concat())
    }

    fn parent(&self) -> Name {
        Name(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.join("/"))
    }
}

/// One path in the code that leads to another place of the crate.
#[derive(Debug)]
pub struct Import {
    /// Path and line.
    pub place: String,
    /// The module of the file.
    pub from: Name,
    /// What the path means, re-exports followed.
    pub to: Name,
}

/// All files of a crate but those of tests, and what they import.
///
/// Code below `#[cfg(test)] mod` is left out: a test may compare with whatever it likes.
pub struct Crate {
    pub files: BTreeSet<Name>,
    pub imports: Vec<Import>,
    /// Paths into other crates: what they lead to as it is written, `std/os`.
    pub foreign: Vec<Import>,
}

impl Crate {
    /// Reads the crate whose root is in the folder `src`; panics on a file that does not parse.
    pub fn read(src: &Path) -> Self {
        let mut files = BTreeMap::new();
        for path in sources(src) {
            let syntax = syn::parse_file(&std::fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let module = module_of(path.strip_prefix(src).unwrap());
            let mut code = Code::new(module.clone());
            code.visit_file(&syntax);
            files.insert(module, (path, code));
        }
        let tests: Vec<Name> = files.values().flat_map(|(_, code)| code.tests.clone()).collect();
        files.retain(|module, _| !tests.iter().any(|test| module.within(test)));

        let mut names: BTreeMap<&Name, &Names> = BTreeMap::new();
        for (module, (_, code)) in &files {
            names.insert(module, &code.names);
        }
        let (mut imports, mut foreign) = (vec![], vec![]);
        for (from, (path, code)) in &files {
            let import = |(to, line): &(Name, usize)| Import {
                place: format!("{}:{line}", path.display()),
                from: from.clone(),
                to: follow(to.clone(), &names),
            };
            imports.extend(code.paths.iter().map(import));
            foreign.extend(code.foreign.iter().map(import));
        }
        Self {
            files: files.into_keys().collect(),
            imports,
            foreign,
        }
    }

    /// The file that a path leads to: the longest module in it that has one.
    pub fn file(&self, path: &Name) -> Option<&Name> {
        let mut module = path.clone();
        loop {
            match self.files.get(&module) {
                Some(file) => return Some(file),
                None if module.0.is_empty() => return None,
                None => module = module.parent(),
            }
        }
    }

    /// Sets of files that import each other, directly or by way of others; each is sorted.
    ///
    /// A module and those below it do not count as a cycle: `mod.rs` is the face of what it holds.
    pub fn cycles(&self) -> BTreeSet<Vec<String>> {
        let mut edges: BTreeMap<&Name, BTreeSet<&Name>> = BTreeMap::new();
        for Import { from, to, .. } in &self.imports {
            let Some(to) = self.file(to) else { continue };
            if !from.within(to) && !to.within(from) {
                edges.entry(from).or_default().insert(to);
            }
        }
        let next = |at| edges.get(at).into_iter().flatten().copied();
        let reach: BTreeMap<&Name, BTreeSet<&Name>> =
            self.files.iter().map(|file| (file, reached(file, next))).collect();
        let mut cycles = BTreeSet::new();
        for (file, others) in reach.iter().filter(|(file, others)| others.contains(*file)) {
            let circle = others.iter().filter(|other| reach[**other].contains(file));
            cycles.insert(circle.map(|name| name.to_string()).collect());
        }
        cycles
    }
}

/// What is reached from `start` in one step or more.
pub fn reached<T: Copy + Ord, I: IntoIterator<Item = T>>(start: T, next: impl Fn(T) -> I) -> BTreeSet<T> {
    let mut found = BTreeSet::new();
    let mut open = vec![start];
    while let Some(at) = open.pop() {
        open.extend(next(at).into_iter().filter(|to| found.insert(*to)));
    }
    found
}

/// The `.rs` files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The module that a file is: `pack/row.rs` is `pack/row`, `pack/mod.rs` is `pack`, `lib.rs` is the root.
fn module_of(file: &Path) -> Name {
    let mut parts: Vec<String> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if parts.last().is_some_and(|last| last == "mod") || parts == ["lib"] {
        parts.pop();
    }
    Name(parts)
}

/// What a path means where it leads through names that another file re-exports.
fn follow(mut path: Name, names: &BTreeMap<&Name, &Names>) -> Name {
    for _ in 0..8 {
        let step = (0..path.0.len()).rev().find_map(|length| {
            let module = Name(path.0[..length].to_vec());
            let target = names.get(&module)?.exported.get(&path.0[length])?;
            Some(target.join(&path.0[length + 1..]))
        });
        match step {
            Some(next) if next != path => path = next,
            _ => break,
        }
    }
    path
}

/// What names mean in a file.
#[derive(Default)]
struct Names {
    /// All that `use` and `mod` bring, whether at the top or within a function.
    known: BTreeMap<String, Name>,
    /// Those that `pub use` hands on.
    exported: BTreeMap<String, Name>,
}

/// What is found while a file's syntax tree is walked.
struct Code {
    module: Name,
    names: Names,
    /// Paths into the crate, each with its line.
    paths: BTreeSet<(Name, usize)>,
    /// Other paths, each with its line.
    foreign: BTreeSet<(Name, usize)>,
    /// Modules of tests that the file declares.
    tests: Vec<Name>,
}

impl Code {
    fn new(module: Name) -> Self {
        Self {
            module,
            names: Names::default(),
            paths: BTreeSet::new(),
            foreign: BTreeSet::new(),
            tests: vec![],
        }
    }

    /// The place in the crate that a path names, if it names one.
    fn resolve(&self, path: &[String]) -> Option<Name> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" | "tqconv" => Some(Name::default().join(rest)),
            "self" => Some(self.module.join(rest)),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let depth = self.module.0.len().checked_sub(ups)?;
                Some(Name(self.module.0[..depth].to_vec()).join(&path[ups..]))
            }
            name => Some(self.names.known.get(name)?.join(rest)),
        }
    }

    fn add(&mut self, path: &[Ident]) {
        let words: Vec<String> = path.iter().map(Ident::to_string).collect();
        let Some(last) = path.last() else { return };
        let line = last.span().start().line;
        match self.resolve(&words) {
            Some(name) => self.paths.insert((name, line)),
            None => self.foreign.insert((Name(words), line)),
        };
    }

    fn use_tree(&mut self, tree: &UseTree, before: &[Ident], public: bool) {
        let with = |ident: &Ident| [before, std::slice::from_ref(ident)].concat();
        match tree {
            UseTree::Path(path) => self.use_tree(&path.tree, &with(&path.ident), public),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(tree, before, public)),
            UseTree::Glob(_) => self.add(before),
            UseTree::Name(name) if name.ident == "self" => self.bind(before.last(), before, public),
            UseTree::Name(name) => self.bind(Some(&name.ident), &with(&name.ident), public),
            UseTree::Rename(rename) if rename.ident == "self" => self.bind(Some(&rename.rename), before, public),
            UseTree::Rename(rename) => self.bind(Some(&rename.rename), &with(&rename.ident), public),
        }
    }

    fn bind(&mut self, name: Option<&Ident>, path: &[Ident], public: bool) {
        self.add(path);
        let words: Vec<String> = path.iter().map(Ident::to_string).collect();
        if let (Some(name), Some(target)) = (name, self.resolve(&words)) {
            if public {
                self.names.exported.insert(name.to_string(), target.clone());
            }
            self.names.known.insert(name.to_string(), target);
        }
    }

    /// Paths in the tokens of a macro, which have no syntax tree.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<Ident> = vec![];
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.multi(&std::mem::take(&mut path));
                    }
                    path.push(ident);
                    colons = 0;
                }
                other => {
                    self.multi(&std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.multi(&path);
    }

    /// A path of one name is no import: a `use` brought it, or it is a variable.
    fn multi(&mut self, path: &[Ident]) {
        if path.len() > 1 {
            self.add(path);
        }
    }
}

impl<'a> Visit<'a> for Code {
    fn visit_file(&mut self, file: &'a syn::File) {
        Declared(self).visit_file(file);
        visit::visit_file(self, file);
    }

    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        if item.content.is_none() || is_test(&item.attrs) {
            return;
        }
        self.module.0.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.0.pop();
    }

    fn visit_item_use(&mut self, _: &'a ItemUse) {}

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.multi(
            &path
                .segments
                .iter()
                .map(|segment| segment.ident.clone())
                .collect::<Vec<_>>(),
        );
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'a Macro) {
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }
}

/// The first walk: names that the file declares, which paths above the declaration may use too.
struct Declared<'a>(&'a mut Code);

impl<'a> Visit<'a> for Declared<'_> {
    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        let module = self.0.module.join(&[item.ident.to_string()]);
        if is_test(&item.attrs) {
            self.0.tests.push(module);
            return;
        }
        self.0.names.known.insert(item.ident.to_string(), module.clone());
        let outer = std::mem::replace(&mut self.0.module, module);
        visit::visit_item_mod(self, item);
        self.0.module = outer;
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        self.0
            .use_tree(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    let is_test = |attribute: &Attribute| {
        attribute
            .parse_args::<Ident>()
            .is_ok_and(|condition| condition == "test")
    };
    attributes
        .iter()
        .any(|attribute| attribute.path().is_ident("cfg") && is_test(attribute))
}
