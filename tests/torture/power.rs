//! What runs in the machine of `contrib/vm/power`, whose power ends again and again: it looks at what is there, against all that was reported
//! before, then writes on and reports each answer over a serial port until the power ends once more.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    killers::Victim,
    model::{Appended, Fate, Replaced, Size},
    name,
    road::Road,
    support::{
        client::Client,
        host::User,
        tokens::{claims, secret, sign},
    },
    tally::Tally,
    writers::{Kind, Writer},
};

/// By tenant.
const SIZES: [Size; 4] = [Size(4 << 10), Size(4 << 10), Size(64 << 10), Size(1 << 20)];
/// So many writes may have been answered whose report the end of the power swallowed.
const UNREPORTED: u64 = 200;
/// Emulation is slow.
const UP_WITHIN: Duration = Duration::from_secs(120);

/// Reports writes, one a line.
#[derive(Clone)]
pub(crate) struct Diary(Arc<Mutex<File>>);

impl Diary {
    /// `what` names a scroll. A line that was cut has no full stop.
    pub(crate) fn note(&self, tenant: usize, what: &str, number: u64, fate: Fate) {
        let line = format!("{tenant} {what} {number} {fate:?} .\n");
        self.0.lock().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// All that was reported, by tenant and scroll, in order.
fn reported() -> BTreeMap<(usize, String), Vec<(u64, Fate)>> {
    let mut reported: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in fs::read_to_string(env::var_os("POWER_TOLD").unwrap()).unwrap().lines() {
        let [tenant, what, number, fate, "."] = line.trim().split(' ').collect::<Vec<_>>()[..] else { continue };
        let fate = match fate {
            "Acknowledged" => Fate::Acknowledged,
            "NotApplied" => Fate::NotApplied,
            _ => Fate::Unknown,
        };
        reported.entry((tenant.parse().unwrap(), what.to_owned())).or_default().push((number.parse().unwrap(), fate));
    }
    reported
}

fn user(id: &str, state_dir: &std::path::Path) -> User {
    let client = Client::new(env::var("POWER_PORT").unwrap().parse().unwrap(), &state_dir.join("tls/cert.pem"));
    User { client, token: sign(&secret(state_dir), &claims(id)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in the machine of contrib/vm/power"]
async fn what_was_told_before_the_power_ended_is_there() {
    let Some(state_dir) = env::var_os("POWER_STATE").map(PathBuf::from) else {
        return eprintln!("the ends of the power are in contrib/vm/power");
    };
    let diary = Diary(Arc::new(Mutex::new(OpenOptions::new().append(true).open(env::var_os("POWER_DIARY").unwrap()).unwrap())));
    let boot: usize = env::var("POWER_BOOT").unwrap().parse().unwrap();
    let began = Instant::now();
    while !["tls/cert.pem", "jwt.key"].iter().all(|file| state_dir.join(file).exists()) {
        assert!(began.elapsed() < UP_WITHIN, "no agent");
        tokio::time::sleep(Duration::from_millis(100)).await; // its first start makes them
    }
    let (mut reported, tally, mut writers) = (reported(), Arc::new(Tally::default()), Vec::new());
    for (n, size) in SIZES.into_iter().enumerate() {
        let victim = Arc::new(Victim::at(&name(n), size, state_dir.join("users").join(name(n))));
        for kind in [Kind::Replaces, Kind::Appends] {
            let road = Road::through_the_proxy(user(&name(n), &state_dir));
            let mut writer = Writer::new(n, kind, road, victim.clone(), tally.clone(), boot as u64);
            writer.wait(UP_WITHIN).await;
            if reported.contains_key(&(n, "ballast".into())) {
                let replaced = reported.remove(&(n, "replaced".into())).unwrap_or_default();
                writer.remember(Replaced::reported(replaced, boot as u64, UNREPORTED), Vec::new());
                let appended = (1..boot).map(|scroll| reported.remove(&(n, format!("appended-{scroll}"))).unwrap_or_default());
                let appended = appended.map(|reported| Appended::reported(reported, UNREPORTED)).collect();
                if kind == Kind::Appends {
                    writer.remember(Replaced::default(), appended);
                }
                writer.check(true).await;
            } else if kind == Kind::Replaces {
                writer.prepare().await;
                writer.remember(Replaced::reported(Vec::new(), boot as u64, 0), Vec::new());
                diary.note(n, "ballast", 1, Fate::Acknowledged);
            }
            writer.report_to(diary.clone());
            writers.push(writer);
        }
    }
    tally.print_faults();
    println!("checked after {:.1?}", began.elapsed());
    let writing: Vec<_> = writers.into_iter().map(|writer| tokio::spawn(writer.write_on())).collect();
    println!("writing");
    for writer in writing {
        writer.await.unwrap();
    }
}
