//! `cargo crdgen`: writes the CRDs of `charts/kith-crds`, `docs/crds.md` and the charts' tables of values anew.

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for file in kith_crds::generate::files(&top)? {
        let path = top.join(&file.path);
        if fs::read_to_string(&path).is_ok_and(|old| old == file.content) {
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, &file.content)?;
        println!("wrote {}", file.path);
    }
    Ok(())
}
