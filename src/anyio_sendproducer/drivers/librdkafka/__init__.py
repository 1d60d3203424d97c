"""The driver on librdkafka, by confluent-kafka, and all that knows librdkafka."""

#: Nothing here is public.
__all__: list[str] = []
