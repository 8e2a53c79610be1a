//! The README says what the program does: its table of keys is the one that parses, its example files are good.

use std::{fs, path::Path};

use sq_agent::desired;

const BEGIN: &str = "<!-- keys: made by the program, see tests/readme.rs -->\n";
const END: &str = "<!-- end of keys -->";

/// `UPDATE_README=1 cargo test --test readme` writes the table anew.
#[test]
fn the_table_of_keys_in_the_readme_is_the_one_that_parses() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("README.md has a begin mark");
    let (table, after) = rest.split_once(END).expect("README.md has an end mark");
    let wanted = desired::reference_markdown();
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(table, wanted, "run UPDATE_README=1 cargo test --test readme");
    }
}

#[test]
fn every_file_that_the_readme_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("README.md")).unwrap();
    let links =
        text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| !link.contains("://") && !link.starts_with('#'));
    let missing: Vec<&str> = links.filter(|link| !root.join(link).exists()).collect();
    assert_eq!(missing, Vec::<&str>::new());
}
