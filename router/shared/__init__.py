"""What the routers of one deployment tell each other through Redis: work in flight and quotas.

link         the connections to Redis, and whether it answers
exchange     what each router has booked on each worker
buckets      the levels of quotas
replicas     all of it, as the services of one router see it; through_redis: how it is when there is a Redis

Prefixes are not here: every router hears of them from the workers. Nothing here is needed to serve: without Redis a
router knows of the others' work only what workers report, and counts quotas by itself.
"""
