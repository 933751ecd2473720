//! `cargo servicegen`: writes anew what follows from the table of services.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in kith_platform::generate::files(&top)? {
        let path = top.join(&file.path);
        if fs::read_to_string(&path).is_ok_and(|old| old == file.content) {
            continue;
        }
        fs::write(&path, &file.content)?;
        println!("wrote {}", file.path);
    }
    Ok(())
}
