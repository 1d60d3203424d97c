"""The driver on librdkafka, by confluent-kafka, and all that knows librdkafka."""
