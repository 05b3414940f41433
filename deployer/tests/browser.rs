//! The dashboard in a real browser, over a real ring of processes made by the real program.
//!
//! Needs Chromium and its driver. Without them the test says so and ends; where `CI` is `true` it fails.
//! `UPDATE_PICTURE=1` makes the picture in README anew; `SKY_PICTURES=FOLDER` writes what it looks like.

#![expect(clippy::unwrap_used, reason = "this is test code")]

#[path = "parts/browser.rs"]
mod browser;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use browser::{Page, RIGHT_WITHIN, Running, SOON, browser, open};
use fantoccini::Locator;
use futures_util::FutureExt;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A ring in a folder of its own, destroyed with the test.
struct Ring {
    folder: tempfile::TempDir,
    port: u16,
}

impl Ring {
    fn new(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_ports(nodes);
        let inventory =
            format!("ring: {{name: browser}}\nnodes: {nodes}\nagent: {{port: {port}}}\n");
        std::fs::write(folder.path().join("inventory.yaml"), inventory).unwrap();
        Self { folder, port }
    }

    /// The program, where no Docker engine can be reached.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sky-deploy"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("XDG_STATE_HOME", self.folder.path().join("state"))
            .env("DOCKER_HOST", "unix:///nonexistent");
        command
    }
}

impl Ring {
    fn must(&self, arguments: &[&str]) {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let destroyed = self.command(&["destroy", "--yes"]).stdout(Stdio::null()).status();
        if !std::thread::panicking() {
            assert!(destroyed.unwrap().success(), "the ring is destroyed");
        }
    }
}

/// The first of `count` consecutive ports that nobody uses now, outside the range that systems hand out.
fn free_ports(count: usize) -> u16 {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = 16_000 + u16::try_from(std::process::id() % 300).unwrap() * 10;
    (first..first + 900)
        .step_by(10)
        .find(|first| (*first..first + u16::try_from(count).unwrap()).all(is_free))
        .expect("some ports are free")
}

impl Page {
    async fn verdict(&self, verdict: &str, at_most: Duration) -> String {
        self.wait(&format!("#verdict[data-verdict={verdict}]"), at_most).await.text().await.unwrap()
    }

    /// Writes what README shows.
    async fn picture(&self, file: &str) {
        self.0.set_window_size(1400, 1560).await.unwrap();
        self.run("scrollTo(0, 0)").await;
        let picture = self.0.screenshot().await.unwrap();
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), picture).unwrap();
        self.0.set_window_size(1400, 1000).await.unwrap();
    }

    /// Shows a node in its panel. Selecting what is selected would let go of it.
    async fn select(&self, name: &str) {
        let row = format!("[data-row][data-name=\"{name}\"]");
        if self.wait(&row, SOON).await.attr("aria-pressed").await.unwrap().as_deref()
            != Some("true")
        {
            self.click(&row).await;
        }
        self.wait(&format!("{row}[aria-pressed=true]"), SOON).await;
    }

    /// Does something to the selected node, by way of the question.
    async fn act(&self, verb: &str) {
        self.click(&format!("#node [data-action={verb}]")).await;
        self.wait("#confirm[open]", SOON).await;
        self.click("#confirm-yes").await;
    }

    async fn state_becomes(&self, name: &str, mark: &str) {
        self.wait(&format!("[data-row][data-name=\"{name}\"] .look-{mark}"), SOON).await;
    }
}

#[tokio::test]
async fn a_ring_is_seen_to_break_and_to_heal() {
    let Some((chromium, chromedriver)) = browser() else { return };
    let ring = Ring::new(5);
    let mut apply = ring.command(&["apply", "--dashboard", "127.0.0.1:0"]);
    let (dashboard, url) = Running::start(&mut apply, |line| {
        line.split_whitespace().find(|word| word.contains("/#token=")).map(str::to_owned)
    });
    let (page, driver) = open(&chromium, &chromedriver).await;
    // Also after a failure the browser must be closed: it does not end with its driver.
    let outcome = AssertUnwindSafe(story(&page, &url, &ring, dashboard)).catch_unwind().await;
    page.0.close().await.unwrap();
    drop(driver);
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure);
    }
}

/// What a user does, and sees.
async fn story(page: &Page, url: &str, ring: &Ring, dashboard: Running) {
    page.0.goto(url).await.unwrap();

    // Five nodes, and it is right.
    let verdict = page.verdict("right", RIGHT_WITHIN).await;
    assert!(verdict.contains("The ring is right"), "{verdict}");
    assert_eq!(page.count("[data-row]").await, 5);
    assert_eq!(page.count("#ring g.node").await, 5);
    assert_eq!(page.count("#ring .arc").await, 5);
    assert_eq!(page.0.current_url().await.unwrap().fragment(), None, "the token is not shown");
    let foreign = "return performance.getEntriesByType('resource').map((entry) => entry.name)
        .filter((name) => !name.startsWith(location.origin))";
    assert_eq!(page.run(foreign).await, json!([]), "the page works offline");

    // A key goes in and comes out.
    page.fill("#key", "page/1 é").await;
    page.fill("#value", "from the page").await;
    page.click("#key-form [value=create]").await;
    page.wait("#key-result [data-done=create].good", SOON).await;
    page.fill("#value", "").await;
    page.click("#key-form [value=get]").await;
    page.wait("#key-result [data-done=get].good", SOON).await;
    assert_eq!(page.text("#key-result .value").await, "from the page");
    page.wait("#ring .halo.owner", SOON).await;
    page.click("#key-form [value=create]").await;
    page.wait("#key-result [data-done=create].bad", SOON).await;

    // A key that nobody stored has an owner, too, and the way to it is drawn.
    page.fill("#key", "never stored").await;
    page.click("#key-form [value=trace]").await;
    page.wait("#key-result [data-done=trace]", SOON).await;
    page.wait("#ring .key-point", SOON).await;
    let owner = page.text("#key-result .trace .link").await;
    let steps = page.count("#key-result .steps li").await;
    assert_eq!(page.count("#ring .hop-mark").await, steps, "each hop has its number and time");
    page.click("#legend [data-forget]").await;

    // The list knows where keys belong without asking: as the lookup says.
    page.click("#list-form [type=submit]").await;
    page.wait("#key-list [data-open=\"page/1 é\"]", SOON).await;
    page.wait("#key-list td[data-label=Version] code", SOON).await;
    page.fill("#prefix", "no such").await;
    page.click("#list-form [type=submit]").await;
    page.wait("#key-list [data-empty]", SOON).await;
    let place = "const done = arguments[0];
        const file = (name) => document.querySelector('script').src.replace('main.js', name);
        Promise.all([import(file('state.js')), import(file('sha1.js')), fetch('/api/ring')])
            .then(async ([{ rangeOf, nameOf }, { sha1 }, answer]) => {
                const [state, hash] = [await answer.json(), sha1('never stored')];
                done([hash, nameOf(state, rangeOf(state, hash).members[0])]);
            })";
    let place = page.0.execute_async(place, Vec::new()).await.unwrap();
    assert_eq!(place, json!([sky_chord::Id::hash(b"never stored").to_string(), owner]));

    // A killed node: wrong, and why.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let address = url.split_once("/#").unwrap().0;
    let state = client.get(format!("{address}/api/ring")).send().await.unwrap();
    let state: Value = state.json().await.unwrap();
    let victim = &state["nodes"][2];
    let name = victim["name"].as_str().unwrap();
    kill(victim);
    let verdict = page.verdict("wrong", SOON).await;
    assert!(verdict.contains("The ring is not right"), "{verdict}");
    assert!(verdict.contains(&format!("{name} ")), "{verdict}");
    page.state_becomes(name, "down").await;
    page.says("#suspicions", &format!("{name} is suspected by")).await;
    page.wait("#ring .suspicion", SOON).await;
    assert!(page.text("#suspicions").await.contains(" s"), "for how long");
    page.select(name).await;
    page.says("#node", "Suspected by").await;

    // What it misses is brought to it when it is back.
    let survivor = u16::from(ring.port == port_of(victim));
    for number in 0..25 {
        let path = format!("http://127.0.0.1:{}/kv/missed%2F{number}", ring.port + survivor);
        let put = client.put(path).body("while it was away").send().await.unwrap();
        assert!(put.status().is_success(), "{put:?}");
    }

    // Started again from the page: right.
    page.select(name).await;
    page.act("start").await;
    page.verdict("right", RIGHT_WITHIN).await;
    page.state_becomes(name, "up").await;
    page.fill("#key", "page/1 é").await;
    page.click("#key-form [value=get]").await;
    page.wait("#key-result [data-done=get].good", SOON).await;
    assert_eq!(page.text("#key-result .value").await, "from the page");

    page.wait("#transfers .transfer-item.over", SOON).await;
    page.look("transfers").await;

    // Pages of keys, of the ring and of one node, by mouse and by keyboard.
    page.fill("#prefix", "missed/").await;
    page.click("#list-form [type=submit]").await;
    page.says("#key-pages", "Page 1 · 20 keys").await;
    page.click("#key-pages [data-page=after]").await;
    page.says("#key-pages", "Page 2, the last · 5 keys").await;
    assert_eq!(page.count("#key-list [data-open]").await, 5);
    page.wait("#key-list [data-open]", SOON).await.send_keys("\u{e00e}").await.unwrap();
    page.says("#key-pages", "Page 1 · 20 keys").await;
    page.click("#key-list [data-open]").await;
    page.says("#key-list .value", "while it was away").await;
    page.look("keys").await;
    page.click("#node [data-browse]").await;
    page.wait("#key-list td[data-label=Here]", SOON).await;

    // Back to when it was down, and to now.
    let entry = format!("//button[@data-moment][contains(., '{name} is down')]");
    page.0.find(Locator::XPath(&entry)).await.unwrap().click().await.unwrap();
    page.wait("#past:not([hidden])", SOON).await;
    page.state_becomes(name, "down").await;
    page.verdict("wrong", SOON).await;
    assert_eq!(page.count("#node [data-action]").await, 0, "the past cannot be changed");
    page.click("#past [data-now]").await;
    page.wait("#past[hidden]", SOON).await;
    page.state_becomes(name, "up").await;

    // What keeps the circle, and what would be without this node.
    page.says("#coverage", "3 of 3 members answer").await;
    page.says("#coverage", "Any one node can fail now").await;
    page.click("#node [data-whatif]").await;
    page.wait(&format!("#ring [aria-label^=\"{name}, down\"]"), SOON).await;
    let all_lack = format!(
        "const its = [...document.querySelectorAll('#ring .range')]
            .filter((range) => range.querySelector('title').textContent.includes('{name}'));
        return its.length >= 3 && its.every((range) => range.querySelector('.lack'))"
    );
    assert_eq!(page.run(&all_lack).await, json!(true), "its ranges would lack a copy");
    page.says("#node .whatif", "Every key can still be read").await;
    page.click("#node [data-whatif]").await;
    page.wait(&format!("#ring [aria-label^=\"{name}, up\"]"), SOON).await;
    if std::env::var_os("UPDATE_PICTURE").is_some() {
        page.picture("dashboard.png").await;
    }

    // Frozen and let go.
    page.act("pause").await;
    page.state_becomes(name, "paused").await;
    page.verdict("wrong", SOON).await;
    page.act("unpause").await;
    page.verdict("right", RIGHT_WITHIN).await;

    // The story is told, and fits a telephone.
    let story = page.text("#changes").await;
    for event in [format!("{name} is down"), format!("{name} is paused"), format!("{name} is up")] {
        assert!(story.contains(&event), "{event}: {story}");
    }
    for (width, dark) in [(360, false), (360, true), (760, false), (1400, true), (1400, false)] {
        page.screen(width, 1000, dark).await;
        page.is_tidy().await;
        page.look(&format!("{width}-{}", if dark { "dark" } else { "light" })).await;
    }

    // A page that is opened later knows the past, too.
    page.0.refresh().await.unwrap();
    page.verdict("right", SOON).await;
    page.says("#changes", &format!("{name} is paused")).await;

    // Two neighbours lose their disks at once and are made anew: the page does not mistake them for those that
    // they were.
    let lost = &state["nodes"].as_array().unwrap()[..2];
    lost.iter().for_each(kill);
    for node in lost {
        let name = node["name"].as_str().unwrap();
        page.state_becomes(name, "down").await;
        let data = format!("state/sky/browser/nodes/{name}/data");
        std::fs::remove_dir_all(ring.folder.path().join(data)).unwrap();
    }
    let applied = ring.command(&["apply", "--detach", "--yes"]).output().unwrap();
    assert_eq!(applied.status.code(), Some(1), "{applied:?}");
    page.says("#verdict", "sky-deploy repair").await;
    page.says("#coverage", "of the circle is out of reach").await;
    assert!(!page.text("#coverage").await.contains("can fail now"));
    page.look("lost").await;
    ring.must(&["repair", "--accept-loss", "--yes"]);
    page.verdict("right", RIGHT_WITHIN).await;
    assert_eq!(page.count("[data-row] .look-up").await, 5);
    assert_eq!(page.text("#suspicions").await, "");

    // Without the dashboard the page says so, and keeps what it knows.
    drop(dashboard);
    page.wait("#banner:not([hidden])", SOON).await;
    assert_eq!(page.count("[data-row]").await, 5);
    page.click("#list-form [type=submit]").await;
    page.wait("#key-list [data-browse-error]", SOON).await;
    page.wait("#key-list [data-page=same]", SOON).await;
}

/// Kills the process of a node.
fn kill(node: &Value) {
    let pid = Pid::from_raw(i32::try_from(node["pid"].as_u64().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Where the agent of a node listens.
fn port_of(node: &Value) -> u16 {
    node["url"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
}
