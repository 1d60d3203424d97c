"""The driver on librdkafka, by way of confluent-kafka."""

#: Nothing here is public.
__all__: list[str] = []
