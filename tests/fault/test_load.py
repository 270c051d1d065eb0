"""At ten times its capacity the server still gets nearly as much done, and refuses the rest at once.

`python -m tests.fault.load` is the long version.
"""

from server.audio.workers import MAX_IDLE
from tests.fault.load import SPEED, Load, server
from tests.fault.outcome import table


async def test_ten_times_the_capacity_costs_little_of_what_gets_done():
    seconds = 5.0
    async with server() as service:
        # Workers and threads that stay are started.
        await Load(service, 0.5, 2.0).run()
        for _ in range(3):
            alone = await Load(service, 1.0, seconds).run()
            crowded = await Load(service, 10.0, seconds).run()
            # Otherwise other programs used the machine; try again.
            if crowded.offered > 9 and alone.goodput > 0.8 * SPEED:
                break
    told = table([alone, crowded])
    assert alone.lost == crowded.lost == {}, told
    assert alone.goodput > 0.8 * SPEED, told
    assert crowded.goodput > 0.8 * alone.goodput, told
    assert crowded.answers["503 queue_full"] > 0.5 * crowded.answers.total(), told
    # About as long as admitted requests took.
    longest = max(crowded.latencies)
    assert all(1 <= retry <= 2 * longest + 1 for retry in crowded.retry_after), told
    assert max(crowded.retry_after) >= 0.5 * longest, told
    assert crowded.health_p99_ms < 1000, told
    assert crowded.after["descriptors"] <= crowded.before["descriptors"] + 8, told
    assert crowded.after["children"] <= MAX_IDLE, told
