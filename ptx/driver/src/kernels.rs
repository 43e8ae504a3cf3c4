//! Kernels by name: PTX files of a folder, or a text that a program loads.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ptx::Module;

/// A PTX file, parsed when a kernel of it is first used.
pub struct Source {
    path: PathBuf,
    text: String,
    parsed: OnceLock<Result<Module, String>>,
}

impl Source {
    /// A text; `path` names it in reports.
    pub fn new(path: PathBuf, text: String) -> Source {
        Source { path, text, parsed: OnceLock::new() }
    }

    /// The module.
    pub fn module(&self) -> Result<&Module, String> {
        let parse = || Module::parse(&self.text).map_err(|e| format!("{}: {e}", self.path.display()));
        self.parsed.get_or_init(parse).as_ref().map_err(Clone::clone)
    }

    /// Names of the kernels, found without parsing.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.text.split(".entry ").skip(1).map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '$');
            &rest[..end.unwrap_or(rest.len())]
        })
    }
}

/// Kernels by name.
pub type Kernels = HashMap<String, Arc<Source>>;

/// The kernels of texts.
pub fn index(sources: impl IntoIterator<Item = Source>) -> Kernels {
    let mut out = Kernels::new();
    for source in sources.into_iter().map(Arc::new) {
        out.extend(source.names().map(|name| (name.to_string(), source.clone())));
    }
    out
}

/// The architecture that a folder is named after: capability times ten, and whether it suits that capability alone.
fn architecture(folder: &Path) -> Option<(i32, bool)> {
    let digits = folder.file_name()?.to_str()?.strip_prefix("sm_")?;
    let plain = digits.trim_end_matches(['a', 'f']);
    Some((plain.parse().ok()?, plain.len() < digits.len()))
}

/// The kernels that a device takes out of `root`, file by file: those of the highest architecture that it can run.
pub fn of_folder(root: &Path, capability: (i32, i32)) -> Result<Arc<Kernels>, String> {
    type Known = HashMap<(PathBuf, (i32, i32)), Arc<Kernels>>;
    static KNOWN: OnceLock<Mutex<Known>> = OnceLock::new();
    let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let key = (root.to_path_buf(), capability);
    if let Some(kernels) = known.get(&key) {
        return Ok(kernels.clone());
    }
    let failed = |path: &Path, e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let entries = fs::read_dir(root).map_err(|e| failed(root, e))?.flatten().map(|e| e.path());
    let own = capability.0 * 10 + capability.1;
    let mut folders: Vec<((i32, bool), PathBuf)> = entries
        .filter_map(|path| Some((architecture(&path)?, path)))
        .filter(|((number, only), _)| if *only { *number == own } else { *number <= own })
        .collect();
    folders.sort();
    if folders.is_empty() {
        return Err(format!("{}: no folder of PTX for compute capability {capability:?}", root.display()));
    }
    let mut texts = HashMap::new();
    for (_, folder) in folders {
        for path in fs::read_dir(&folder).map_err(|e| failed(&folder, e))?.flatten().map(|e| e.path()) {
            if path.extension().is_some_and(|e| e == "ptx") {
                texts.insert(path.file_name().map(ToOwned::to_owned), path);
            }
        }
    }
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).map_err(|e| failed(&path, e))?;
        Ok(Source::new(path, text))
    };
    let kernels = Arc::new(index(texts.into_values().map(read).collect::<Result<Vec<_>, String>>()?));
    known.insert(key, kernels.clone());
    Ok(kernels)
}
