import math


def librdkafka_config(settings):
    timeout = min(2**31 - 1, math.ceil(settings.delivery_timeout * 1000))
    c = {
        "bootstrap.servers": ",".join(settings.addresses),
        "client.id": settings.client_id,
        "enable.idempotence": True,
        "linger.ms": 0,
        "partitioner": "murmur2_random",
        "message.timeout.ms": timeout,
        "queue.buffering.max.messages": 10000000,
        "queue.buffering.max.kbytes": 2147483647,
        "reconnect.backoff.max.ms": 1000,
        "topic.metadata.propagation.max.ms": int(settings.unknown_topic_timeout * 1000),
    }
    c.update({k.replace("_", "."): v for k, v in settings.properties.items() if "api" not in k})
    return c
