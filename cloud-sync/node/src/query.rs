//! Questions over many shards.
//!
//! Of one device of one gateway one shard is asked, otherwise all of them, side by side; what they merged by
//! themselves is merged here. Always holds: an answer is of one map, which every shard that
//! answers has checked; a shard that does not answer is named, never left out in silence.

use super::router::{Router, TRIES};
use super::shard::{Beat, Partial, Question as ShardQuestion, ShardError, add_cell, check_cells};
use daemon::aggregates::answer::{Cell, Cells, Head, Sink};
use daemon::aggregates::{Answer, GroupKey, Question, Starts};
use model::Micros;
use model::aggregate::Window;
use placement::Epoch;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// More than one question may take.
    #[error("{0}")]
    TooMuch(String),
    /// Not one shard answers, or slots are moving too quickly.
    #[error("{0}")]
    Unavailable(String),
}

/// A shard that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Which.
    pub shard: String,
    /// Why.
    pub why: String,
    /// How many slots it owns of those asked about.
    pub slots: usize,
}

/// Answers a question; what is missing stands beside it.
pub(crate) async fn aggregates(
    router: &Router,
    question: &Question,
    gateways: &[String],
    timeout: Duration,
    cells_max: usize,
) -> Result<(Answer, Vec<Missing>), QueryError> {
    let of_shard = |fences| ShardQuestion {
        filter: question.filter.clone(),
        gateways: gateways.to_vec(),
        range: question.range,
        grid: question.grid(),
        group_by: question.group_by.clone(),
        sketches: !question.quantiles().is_empty(),
        fences,
        cells_max,
    };
    // Before the windows are read: what becomes complete meanwhile may not be among them.
    let (beats, silent) = beats(router, timeout).await?;
    let (parts, mut missing) = scatter(router, gateways, &question.filter.devices, timeout, |shard, fences| {
        let question = of_shard(fences);
        async move { shard.aggregate(question).await }
    })
    .await?;
    let mut parts = parts.into_iter();
    let mut whole: Partial = parts.next().unwrap_or_default();
    for part in parts {
        for (key, cell) in part {
            add_cell(&mut whole, key, &cell.summary, cell.beyond_us);
        }
        check_cells(&whole, cells_max).map_err(|e| QueryError::TooMuch(e.to_string()))?;
    }
    let complete_us = match silent.is_empty() && missing.is_empty() {
        true => beats.iter().map(|beat| beat.complete_us).min().unwrap_or(Micros::MIN),
        false => Micros::MIN,
    };
    missing.sort_by(|a, b| a.shard.cmp(&b.shard));
    Ok((answer(question, whole, complete_us), missing))
}

/// Rows of the answer, from the page's begin on.
fn answer(question: &Question, whole: Partial, complete_until_us: Micros) -> Answer {
    let mut groups: BTreeMap<GroupKey, Vec<(Micros, Cell)>> = BTreeMap::new();
    for ((key, start_us), cell) in whole {
        groups.entry(key).or_default().push((start_us, Cell::of_sketch(cell.summary, cell.beyond_us)));
    }
    let mut sink = Sink::new(question);
    let first_us = question.first_start_us();
    for (key, own) in groups {
        let head = Head { key, complete_until_us };
        let mut from_us = first_us;
        if let Some((after, start_us)) = &question.after {
            if !head.is_at_or_behind(after) {
                continue;
            }
            let is_past_the_only_one = matches!(question.window, Window::All);
            if head.is(after) {
                if is_past_the_only_one {
                    continue;
                }
                from_us = start_us.saturating_add(1);
            }
        }
        let starts = Starts { from_us, to_us: question.range.to_us };
        let cells: Cells = own.into_iter().filter(|(at, _)| *at >= from_us).map(|(at, cell)| ((0, at), cell)).collect();
        if sink.take([&head], starts, cells).is_break() {
            break;
        }
    }
    sink.finish()
}

/// All gateways, and the shards that did not tell.
pub(crate) async fn beats(router: &Router, timeout: Duration) -> Result<(Vec<Beat>, Vec<Missing>), QueryError> {
    let (parts, missing) = scatter(router, &[], &[], timeout, |shard, _| async move { shard.beats().await }).await?;
    let mut newest: BTreeMap<String, Beat> = BTreeMap::new();
    for beat in parts.into_iter().flatten() {
        if newest.get(&beat.gateway).is_none_or(|known| known.seen_us < beat.seen_us) {
            newest.insert(beat.gateway.clone(), beat);
        }
    }
    Ok((newest.into_values().collect(), missing))
}

/// Asks all shards that own slots of these gateways' devices; once more, with a newer map, if one refuses.
pub(crate) async fn scatter<T: Send + 'static, F>(
    router: &Router,
    gateways: &[String],
    devices: &[String],
    timeout: Duration,
    ask: impl Fn(Arc<dyn super::shard::Shard>, Arc<Vec<(u16, Epoch)>>) -> F,
) -> Result<(Vec<T>, Vec<Missing>), QueryError>
where
    F: Future<Output = Result<T, ShardError>> + Send + 'static,
{
    let mut last = String::new();
    for _ in 0..TRIES {
        let view = router.view();
        let (mut tasks, mut parts, mut missing, mut fenced) = (JoinSet::new(), Vec::new(), Vec::new(), false);
        for (name, fences) in view.targets(gateways, devices) {
            let slots = fences.len();
            match view.shard(&name) {
                Ok(shard) => {
                    let (asked, patience) = (ask(Arc::clone(shard), fences), router.patience(&name, timeout));
                    tasks.spawn(async move {
                        let answer = tokio::time::timeout(patience, asked).await;
                        (name, slots, answer.map_err(|_| patience))
                    });
                }
                Err(e) => missing.push(Missing { shard: name, why: e.to_string(), slots }),
            }
        }
        while let Some(done) = tasks.join_next().await {
            let Ok((shard, slots, answer)) = done else {
                return Err(QueryError::Unavailable("a question ended in a panic; see the log".into()));
            };
            router.heard(&shard, answer.is_ok());
            let late = |patience| Err(ShardError::Down(format!("no answer within {patience:?}")));
            match answer.unwrap_or_else(late) {
                Ok(part) => parts.push(part),
                Err(ShardError::TooMuch(text)) => return Err(QueryError::TooMuch(text)),
                Err(error @ ShardError::Fenced { .. }) => {
                    last = format!("shard {shard}: {error}");
                    fenced = true;
                }
                Err(error) => missing.push(Missing { shard, why: error.to_string(), slots }),
            }
        }
        if !fenced {
            return Ok((parts, missing));
        }
        router.catch_up().await.map_err(|e| QueryError::Unavailable(e.to_string()))?;
    }
    Err(QueryError::Unavailable(last))
}
