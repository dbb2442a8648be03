//! The link in simulated time: rates, delays and losses are what was asked, and a seed repeats.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn at(millis: u64) -> Time {
    Time::ZERO.after(MS * millis as u32)
}

fn percent(text: &str) -> Probability {
    text.parse().expect("a percentage")
}

fn numbered(number: u32, size: usize) -> Vec<u8> {
    let mut frame = vec![0; size.max(HEADER + 4)];
    frame[HEADER..HEADER + 4].copy_from_slice(&number.to_be_bytes());
    frame
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[HEADER..HEADER + 4].try_into().expect("four bytes"))
}

/// Lets time go on from one due moment to the next until `end`; gives when what arrived.
fn drain(link: &mut Link, end: Time) -> Vec<(Time, Vec<u8>)> {
    let mut arrived = Vec::new();
    while let Some(due) = link.next_due().filter(|due| *due <= end) {
        link.poll(due, |frame| arrived.push((due, frame.to_vec())));
    }
    arrived
}

#[test]
fn a_link_that_does_nothing_does_nothing() {
    let mut link = Link::new(Shape::default(), 1, Time::ZERO);
    for index in 0..100 {
        link.push(&numbered(index, 100), at(5));
    }
    let arrived = drain(&mut link, at(5));
    assert_eq!(arrived.len(), 100);
    assert!(
        arrived
            .iter()
            .zip(0..)
            .all(|((_, frame), index)| number(frame) == index)
    );
    assert_eq!(link.held(), 0);
}

#[test]
fn bandwidth_is_within_three_percent_at_every_rate_and_size() {
    for bits_per_second in [64_000, 1_000_000, 10_000_000, 1_000_000_000] {
        for size in [64, 590, 1514, 9014] {
            let bandwidth = Some(Bandwidth {
                bits_per_second,
                burst: 3000,
            });
            let shape = Shape {
                bandwidth,
                ..Shape::default()
            };
            let mut link = Link::new(shape, 1, Time::ZERO);
            // The queue is never empty for as long as a thousand frames take.
            let time = Duration::from_secs_f64(1000.0 * size as f64 * 8.0 / bits_per_second as f64);
            let end = Time::ZERO.after(time);
            let (mut bytes, mut now) = (0, Time::ZERO);
            while now < end {
                while link.queued < 100_000 {
                    link.push(&numbered(0, size), now);
                }
                now = link.next_due().expect("a frame");
                link.poll(now, |frame| bytes += frame.len());
            }
            // What passed at once at first is no part of the rate.
            let rate = (bytes - 3000) as f64 * 8.0 / now.since(Time::ZERO).as_secs_f64();
            let error = rate / bits_per_second as f64 - 1.0;
            assert!(
                error.abs() < 0.03,
                "{bits_per_second} bit/s, {size} B: {error}"
            );
        }
    }
}

#[test]
fn a_burst_passes_at_once_and_no_more() {
    let bandwidth = Some(Bandwidth {
        bits_per_second: 80_000,
        burst: 10_000,
    });
    let mut link = Link::new(
        Shape {
            bandwidth,
            ..Shape::default()
        },
        1,
        Time::ZERO,
    );
    for index in 0..20 {
        link.push(&numbered(index, 1000), Time::ZERO);
    }
    assert_eq!(drain(&mut link, Time::ZERO).len(), 10);
    // A thousand bytes take 100 ms at this rate.
    let times: Vec<Time> = drain(&mut link, at(10_000))
        .into_iter()
        .map(|(time, _)| time)
        .collect();
    assert_eq!(
        times,
        (1..=10).map(|step| at(step * 100)).collect::<Vec<_>>()
    );
}

#[test]
fn delay_is_exact_and_keeps_the_order() {
    let shape = Shape {
        delay: MS * 80,
        ..Shape::default()
    };
    let mut link = Link::new(shape, 1, Time::ZERO);
    for index in 0..50 {
        link.push(&numbered(index, 100), at(u64::from(index)));
    }
    for (index, (time, frame)) in drain(&mut link, at(1000)).into_iter().enumerate() {
        assert_eq!(
            (time, number(&frame)),
            (at(80 + index as u64), index as u32)
        );
    }
}

/// Delays of frames that are too far apart to hold each other up.
fn delays(jitter: Jitter) -> Vec<f64> {
    let shape = Shape {
        delay: MS * 100,
        jitter: Some(jitter),
        ..Shape::default()
    };
    let mut link = Link::new(shape, 42, Time::ZERO);
    (0..20_000)
        .map(|index| {
            let sent = at(index * 1000);
            link.push(&numbered(0, 100), sent);
            let arrived = drain(&mut link, at(index * 1000 + 999));
            arrived[0].0.since(sent).as_secs_f64() * 1000.0
        })
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    let middle = mean(values);
    mean(
        &values
            .iter()
            .map(|value| (value - middle).powi(2))
            .collect::<Vec<_>>(),
    )
    .sqrt()
}

fn correlation(values: &[f64]) -> f64 {
    let middle = mean(values);
    let products: Vec<f64> = values
        .windows(2)
        .map(|pair| (pair[0] - middle) * (pair[1] - middle))
        .collect();
    mean(&products) / deviation(values).powi(2)
}

#[test]
fn jitter_has_its_distribution_and_correlation() {
    for likeness in ["0%", "50%", "90%"] {
        let wanted = percent(likeness).as_f64();
        // The mean of values that are alike varies more.
        let slack = 1.0 / (1.0 - wanted);
        let uniform = delays(Jitter {
            spread: MS * 30,
            distribution: Distribution::Uniform,
            correlation: percent(likeness),
        });
        assert!(uniform.iter().all(|delay| (70.0..=130.0).contains(delay)));
        assert!(
            (mean(&uniform) - 100.0).abs() < 0.5 * slack,
            "{likeness}: {}",
            mean(&uniform)
        );
        assert!(
            (deviation(&uniform) - 30.0 / 3f64.sqrt()).abs() < 0.3 * slack,
            "{likeness}"
        );
        assert!(
            (correlation(&uniform) - wanted).abs() < 0.04,
            "{likeness}: {}",
            correlation(&uniform)
        );
        let normal = delays(Jitter {
            spread: MS * 20,
            distribution: Distribution::Normal,
            correlation: percent(likeness),
        });
        assert!(
            (mean(&normal) - 100.0).abs() < 0.5 * slack,
            "{likeness}: {}",
            mean(&normal)
        );
        assert!(
            (deviation(&normal) - 20.0).abs() < 0.4 * slack,
            "{likeness}"
        );
        assert!((correlation(&normal) - wanted).abs() < 0.04, "{likeness}");
    }
}

/// Tells whether a count is within 4 standard deviations of what so many throws give.
fn is_likely(count: u64, throws: u64, probability: f64) -> bool {
    let expected = throws as f64 * probability;
    let deviation = (expected * (1.0 - probability)).sqrt();
    (count as f64 - expected).abs() <= 4.0 * deviation
}

fn counters_after(shape: Shape, frames: u64, seed: u64) -> LinkCounters {
    let mut link = Link::new(shape, seed, Time::ZERO);
    for _ in 0..frames {
        link.push(&numbered(0, 100), Time::ZERO);
        link.poll(Time::ZERO, |_| {});
    }
    *link.counters()
}

#[test]
fn chances_are_within_the_binomial_interval() {
    const FRAMES: u64 = 100_000;
    for text in ["0.1%", "1%", "10%", "50%"] {
        let probability = percent(text);
        let shape = Shape {
            loss: Loss::Random(probability),
            duplicate: probability,
            corrupt: probability,
            ..Shape::default()
        };
        for seed in 0..5 {
            let counters = counters_after(shape.clone(), FRAMES, seed);
            let left = FRAMES - counters.lost;
            assert!(
                is_likely(counters.lost, FRAMES, probability.as_f64()),
                "{text}: {counters:?}"
            );
            assert!(
                is_likely(counters.duplicated, left, probability.as_f64()),
                "{text}: {counters:?}"
            );
            assert!(
                is_likely(counters.corrupted, left, probability.as_f64()),
                "{text}: {counters:?}"
            );
            assert_eq!(counters.passed, left + counters.duplicated);
        }
    }
}

#[test]
fn losses_of_a_bad_wire_come_in_bursts() {
    let loss = Loss::GilbertElliott {
        to_bad: percent("1%"),
        to_good: percent("20%"),
        while_good: Probability::NEVER,
        while_bad: Probability::ALWAYS,
    };
    let mut link = Link::new(
        Shape {
            loss,
            ..Shape::default()
        },
        9,
        Time::ZERO,
    );
    const FRAMES: u64 = 200_000;
    let (mut bursts, mut lost_before) = (0u64, false);
    for _ in 0..FRAMES {
        let lost = link.counters().lost;
        link.push(&numbered(0, 100), Time::ZERO);
        link.poll(Time::ZERO, |_| {});
        let lost = link.counters().lost > lost;
        bursts += u64::from(lost && !lost_before);
        lost_before = lost;
    }
    let lost = link.counters().lost;
    // In the long run it is bad for 1/21 of the time, for 5 frames on the average. Neighbours depend on each other, so the
    // interval is wider than the binomial one by the root of (1 + 0.79) / (1 - 0.79).
    let share = lost as f64 / FRAMES as f64;
    assert!((share - 1.0 / 21.0).abs() < 0.006, "{share}");
    let length = lost as f64 / bursts as f64;
    assert!((length - 5.0).abs() < 0.5, "{length}");
}

#[test]
fn what_is_reordered_passes_what_was_sent_before() {
    let shape = Shape {
        delay: MS * 10,
        reorder: percent("25%"),
        ..Shape::default()
    };
    let mut link = Link::new(shape, 3, Time::ZERO);
    for index in 0..1000 {
        link.push(&numbered(index, 100), at(u64::from(index)));
    }
    let arrived: Vec<u32> = drain(&mut link, at(5000))
        .iter()
        .map(|(_, frame)| number(frame))
        .collect();
    assert_eq!(arrived.len(), 1000);
    assert!(is_likely(link.counters().reordered, 1000, 0.25));
    let passed = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(passed > 100, "{passed}");
}

#[test]
fn a_turned_bit_is_one_and_behind_the_addresses() {
    let mut link = Link::new(
        Shape {
            corrupt: Probability::ALWAYS,
            ..Shape::default()
        },
        3,
        Time::ZERO,
    );
    for _ in 0..500 {
        link.push(&[0; 60], Time::ZERO);
        link.poll(Time::ZERO, |frame| {
            assert_eq!(frame.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
            assert!(frame[..12].iter().all(|byte| *byte == 0));
        });
    }
}

#[test]
fn a_partition_and_an_mtu_hold_and_end() {
    let mut link = Link::new(
        Shape {
            delay: MS,
            ..Shape::default()
        },
        3,
        Time::ZERO,
    );
    link.push(&numbered(1, 100), Time::ZERO);
    link.set_shape(
        Shape {
            partition: true,
            ..Shape::default()
        },
        Time::ZERO,
    );
    link.push(&numbered(2, 100), Time::ZERO);
    assert!(drain(&mut link, at(10)).is_empty());
    assert_eq!(link.counters().partitioned, 2);
    link.set_shape(
        Shape {
            mtu: Some(500),
            ..Shape::default()
        },
        at(10),
    );
    link.push(&numbered(3, HEADER + 500), at(10));
    link.push(&numbered(4, HEADER + 501), at(10));
    let arrived: Vec<u32> = drain(&mut link, at(10))
        .iter()
        .map(|(_, frame)| number(frame))
        .collect();
    assert_eq!((arrived, link.counters().too_long), (vec![3], 1));
}

#[test]
fn a_full_queue_drops_its_tail() {
    let bandwidth = Some(Bandwidth {
        bits_per_second: 8_000,
        burst: 1000,
    });
    let queue = QueueLimit {
        bytes: 5000,
        discipline: Discipline::TailDrop,
    };
    let mut link = Link::new(
        Shape {
            bandwidth,
            queue,
            ..Shape::default()
        },
        1,
        Time::ZERO,
    );
    for index in 0..100 {
        link.push(&numbered(index, 1000), Time::ZERO);
    }
    let arrived: Vec<u32> = drain(&mut link, at(60_000))
        .iter()
        .map(|(_, frame)| number(frame))
        .collect();
    assert_eq!(arrived, [0, 1, 2, 3, 4, 5]);
    assert_eq!(link.counters().overflowed, 94);
}

/// An overload of a fifth for 20 s: with tail drop frames wait for the whole queue, with CoDel not for long.
#[test]
fn codel_keeps_the_waiting_short() {
    let waiting = |discipline| {
        let bandwidth = Some(Bandwidth {
            bits_per_second: 8_000_000,
            burst: 1500,
        });
        let queue = QueueLimit {
            bytes: 500_000,
            discipline,
        };
        let mut link = Link::new(
            Shape {
                bandwidth,
                queue,
                ..Shape::default()
            },
            1,
            Time::ZERO,
        );
        let (mut last, mut bytes) = (Duration::ZERO, 0);
        for millis in 0..20_000_u32 {
            let now = at(u64::from(millis));
            link.push(&numbered(millis, 1200), now);
            link.poll(now, |frame| {
                bytes += frame.len();
                if millis > 15_000 {
                    last = last.max(now.since(at(u64::from(number(frame)))));
                }
            });
        }
        assert!(bytes as f64 > 0.97 * 20_000_000.0, "{bytes}");
        last
    };
    let long = waiting(Discipline::TailDrop);
    assert!(long > MS * 450, "{long:?}");
    let short = waiting(Discipline::CoDel {
        target: MS * 5,
        interval: MS * 100,
    });
    // A sender that does not slow down is the worst case; the delay still does not settle at the queue's length.
    assert!(short < long / 2, "{short:?} against {long:?}");
}

fn shapes() -> impl Strategy<Value = Shape> {
    let chance =
        || (0u32..=1_000_000_000).prop_map(|part| Probability::from_billionths(part).unwrap());
    let bandwidth = prop::option::of((0u64..2_000_000, 0u32..5_000).prop_map(
        |(bits_per_second, burst)| Bandwidth {
            bits_per_second,
            burst,
        },
    ));
    let jitter = prop::option::of((0u64..50, any::<bool>(), chance()).prop_map(
        |(spread, normal, correlation)| Jitter {
            spread: Duration::from_millis(spread),
            distribution: if normal {
                Distribution::Normal
            } else {
                Distribution::Uniform
            },
            correlation,
        },
    ));
    let queue = (0u32..20_000, any::<bool>()).prop_map(|(bytes, codel)| QueueLimit {
        bytes,
        discipline: if codel {
            Discipline::CoDel {
                target: MS * 5,
                interval: MS * 100,
            }
        } else {
            Discipline::TailDrop
        },
    });
    let loss = prop_oneof![
        Just(Loss::None),
        chance().prop_map(Loss::Random),
        (chance(), chance(), chance(), chance()).prop_map(
            |(to_bad, to_good, while_good, while_bad)| Loss::GilbertElliott {
                to_bad,
                to_good,
                while_good,
                while_bad
            }
        ),
    ];
    (
        bandwidth,
        0u64..100,
        jitter,
        loss,
        chance(),
        chance(),
        chance(),
        queue,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(bandwidth, delay, jitter, loss, duplicate, reorder, corrupt, queue, partition)| {
                Shape {
                    bandwidth,
                    delay: Duration::from_millis(delay),
                    jitter,
                    loss,
                    duplicate,
                    reorder,
                    corrupt,
                    queue,
                    mtu: None,
                    partition,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// What comes out, and when, is the same however often somebody polls; and every frame is accounted for.
    #[test]
    fn a_seed_repeats_however_it_is_polled(
        shape in shapes(),
        seed: u64,
        waits in prop::collection::vec((0u64..20, 20usize..2000), 1..60),
        polls in prop::collection::vec(0usize..5, 60),
    ) {
        let mut outcomes = Vec::new();
        for extra in [false, true] {
            let mut link = Link::new(shape.clone(), seed, Time::ZERO);
            let (mut millis, mut arrived) = (0, Vec::new());
            for (index, (wait, size)) in waits.iter().enumerate() {
                for step in 0..*wait {
                    if extra && polls[index] > 2 {
                        arrived.extend(drain(&mut link, at(millis + step)));
                    }
                }
                millis += wait;
                if extra {
                    arrived.extend(drain(&mut link, at(millis)));
                }
                link.push(&numbered(index as u32, *size), at(millis));
            }
            arrived.extend(drain(&mut link, Time::from_nanos(u64::MAX - 1)));
            let c = *link.counters();
            let stuck = link.queue.len() as u64;
            prop_assert_eq!(
                waits.len() as u64 + c.duplicated,
                c.passed + c.lost + c.overflowed + c.dropped_early + c.too_long + c.partitioned + stuck
            );
            prop_assert_eq!(arrived.len() as u64, c.passed);
            outcomes.push((arrived, c));
        }
        prop_assert_eq!(&outcomes[0], &outcomes[1]);
    }

    #[test]
    fn percentages_beyond_one_are_none(billionths in 1_000_000_001u32..) {
        prop_assert_eq!(Probability::from_billionths(billionths), None);
    }
}
