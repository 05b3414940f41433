//! `GET /events` of a real agent: going on where a client was.

use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use sky_api::Code;

use crate::refused;
use crate::support::Agent;

/// The events that are there: id and data, none of the first if it has no data.
async fn events(
    agent: &Agent,
    after: Option<&str>,
    last: Option<&str>,
) -> Vec<(String, Option<Value>)> {
    let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
    let mut request = agent.get(&format!("/events?follow=false{after}"));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
    let text = response.text().await.unwrap();
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned())
    };
    let event = |event: &str| {
        let data = field(event, "data:").map(|data| serde_json::from_str(&data).unwrap());
        (field(event, "id:").unwrap(), data)
    };
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn a_client_goes_on_after_the_event_it_saw() {
    let agent = Agent::start(&[]).await;
    let all = events(&agent, Some("0"), None).await;
    assert!(all.len() > 2 && all[0].1.is_none(), "{all:?}");
    let joined = |(_, data): &(String, Option<Value>)| {
        data.as_ref().is_some_and(|data| data["event"] == "joined" && data["at_ms"].is_u64())
    };
    assert!(all.iter().any(joined), "{all:?}");
    let second = &all[1];
    assert_eq!(events(&agent, Some(&second.0), None).await[1..], all[2..]);
    assert_eq!(events(&agent, Some("0"), Some(&second.0)).await[1..], all[2..]);
    let now = events(&agent, None, None).await;
    assert_eq!((now.len(), &now[0].0), (1, &all.last().unwrap().0), "nothing new, but a place");
}

#[tokio::test]
async fn a_client_with_a_place_of_another_start_is_told_and_gets_what_there_is() {
    let agent = Agent::start(&[]).await;
    let all = events(&agent, Some("0"), None).await;
    let (start, number) = all[1].0.rsplit_once('.').unwrap();
    let (directory, boot) = start.rsplit_once('.').unwrap();
    assert_eq!((boot, number), ("1", "1"));
    let places = [format!("{directory}.2.1"), "0.1.1".to_owned(), format!("{start}.999")];
    for place in &places {
        let found = events(&agent, Some(place), None).await;
        let missed = found[0].1.as_ref().unwrap();
        assert_eq!((&missed["event"], &missed["why"]), (&"missed".into(), &"other_start".into()));
        assert_eq!(missed["count"], Value::Null);
        assert_eq!(found[1..], all[1..], "{place}");
    }
    // What browsers send back may be from an agent of another version.
    let found = events(&agent, None, Some("5")).await;
    assert_eq!(found[0].1.as_ref().unwrap()["event"], "missed");
    for query in ["after=5", "after=", "after=x.1.1", "follow=1", "follow=true&follow=true"] {
        refused(agent.get(&format!("/events?{query}")), Code::BadRequest).await;
    }
}
