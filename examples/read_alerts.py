"""Print the alerts of a topic: python read_alerts.py SERVERS TOPIC ls4.v1_0.alert.avsc [SECONDS]."""

import io
import sys

import fastavro
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

servers, topic, schema_file = sys.argv[1:4]
patience_s = float(sys.argv[4]) if len(sys.argv) > 4 else 1e9
schema = fastavro.schema.load_schema(schema_file)  # finds the nested records beside it
consumer = Consumer({"bootstrap.servers": servers, "group.id": "my-group"})
partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
seen = set()
while (message := consumer.poll(patience_s)) is not None:
    alert = {} if message.error() else fastavro.schemaless_reader(io.BytesIO(message.value()), schema, None)
    if alert and alert["alertId"] not in seen:  # a packet may come twice
        seen.add(alert["alertId"])
        source = alert["diaSource"]
        print(alert["diaObject"]["name"], source["ra"], source["dec"], source["band"], source["psfFlux"], "nJy")
consumer.close()
