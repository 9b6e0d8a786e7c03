# Databricks notebook source
# MAGIC %md
# MAGIC # Model parallelism
# MAGIC
# MAGIC PyTorch's `nn.TransformerEncoderLayer` on one device and `nn.TransformerDecoderLayer` on another. The encoder's output moves
# MAGIC from the one to the other; while the decoder works on some rows, the encoder works on the next.
# MAGIC
# MAGIC Runs on a single-user (dedicated) cluster. PyTorch is needed for one cell only, which writes the model's folder.

# COMMAND ----------

# MAGIC %pip install firesteel

# COMMAND ----------

dbutils.widgets.text("model", "/Volumes/main/default/models/encoder_decoder", "Model folder")
dbutils.widgets.text("devices", "cuda:0,cuda:1", "Devices of an executor, such as cpu:0,cpu:1")
dbutils.widgets.text("rows", "32", "Rows")
dbutils.widgets.text("length", "512", "Positions of a row")

model = dbutils.widgets.get("model")
devices = dbutils.widgets.get("devices").split(",")
rows, length = int(dbutils.widgets.get("rows")), int(dbutils.widgets.get("length"))

# COMMAND ----------

# MAGIC %md
# MAGIC A model's folder is `config.json` and the modules' `state_dict()`, saved by safetensors. The two layers go under the names
# MAGIC that they would have in a transformer of one layer each.

# COMMAND ----------

import json
import os

config = {
    "model_type": "torch_transformer",
    "part": "transformer",
    "d_model": 512,
    "nhead": 8,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dim_feedforward": 2048,
}

if not os.path.exists(model):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    encoder = torch.nn.TransformerEncoderLayer(512, 8, dim_feedforward=2048, batch_first=True)
    decoder = torch.nn.TransformerDecoderLayer(512, 8, dim_feedforward=2048, batch_first=True)
    weights = {f"encoder.layers.0.{name}": tensor for name, tensor in encoder.state_dict().items()}
    weights |= {f"decoder.layers.0.{name}": tensor for name, tensor in decoder.state_dict().items()}
    os.makedirs(model)
    save_file(weights, f"{model}/model.safetensors")
    with open(f"{model}/config.json", "w") as file:
        json.dump(config, file)

# COMMAND ----------

# MAGIC %md
# MAGIC Features, 512 numbers a position, made up by Spark: what the encoder reads, and what the decoder reads.

# COMMAND ----------


def features(seed: int) -> str:
    number = f"cast(pmod(xxhash64({seed}, id, place, channel), 20001) / 10000D - 1 AS float)"
    return f"transform(sequence(1, {length}), place -> transform(sequence(1, 512), channel -> {number}))"


batch = spark.range(0, rows, 1, 2).selectExpr("id", f"{features(0)} AS source", f"{features(1)} AS target").cache()

# COMMAND ----------

# MAGIC %md
# MAGIC `parallel="split"` cuts the model between its layers. One task at a time has all devices, so let a task take all GPUs of its
# MAGIC executor: `spark.task.resource.gpu.amount`.

# COMMAND ----------

import firesteel

states = firesteel.hidden_states_udf(model, "first", devices=devices, parallel="split", threads=os.cpu_count())
scored = firesteel.score(batch, states, "source", "target", output="state").cache()
scored.selectExpr("count(*) AS rows", "min(size(state)) AS width").show()

# COMMAND ----------

# MAGIC %md
# MAGIC The same bits come out of one device: how many there are never shows in a result.

# COMMAND ----------

alone = firesteel.hidden_states_udf(model, "first", devices=devices[:1], threads=os.cpu_count())
compared = scored.withColumn("alone", alone("source", "target"))
different = compared.where("state <> alone").count()
print(f"{different} of {rows} rows differ")
