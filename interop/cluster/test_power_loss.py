"""All nodes lose their power at once, and come back in every order: whoever has what was confirmed leads (H32)."""

import itertools
import random
import time

import pytest
from harness import failover
from harness.cluster import chosen_seed, figure, in_sync, temporary

ORDERS = list(itertools.permutations(["stale", "one", "other"]))
#: The stale node first, in the middle and last.
FEW = [ORDERS[0], ORDERS[2], ORDERS[5]]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_confirmed_data_leads_whoever_boots_last(order, long):
    if order not in FEW and not long:
        pytest.skip("with --long")
    seed = chosen_seed()
    source = random.Random(seed)
    with temporary("power-loss", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        primary = cluster.primary()
        stale, other = cluster.replicas()
        # The set goes on without it: what is confirmed from now on, it does not have.
        stale.kill()
        cluster.wait_for(lambda found: stale.name not in in_sync(found[primary.name]), 20, f"{stale.name} out of the set")
        load.flow()
        for node in (primary, other):
            node.child.kill()
        for node in (primary, other):
            node.kill()
        load.stop()
        roles = {"stale": stale, "one": primary, "other": other}
        for number, role in enumerate(order):
            roles[role].start(wait=False)
            if number < 2:
                # Longer than a session at times: whoever boots early must not lose patience.
                time.sleep(source.choice([0.2, 1.0, cluster.session_ms / 1000 + 2]))
                assert role != "stale" or not stale.serves(), "the node without the newest confirmed data serves"
        cluster.wait_in_sync()
        load.check(cluster.primary())
        cluster.stop_alike()
        figure(f"power loss, started in order {' '.join(order)}: {load.summary()}")
