# Databricks notebook source
# MAGIC %md
# MAGIC # Data parallelism
# MAGIC
# MAGIC A language model - an embedding table and the encoder of PyTorch's `nn.Transformer` - gives the last hidden state's first
# MAGIC position of every row of a table. Each device of an executor holds a copy of the model and takes rows whenever it is free.
# MAGIC
# MAGIC Runs on a single-user (dedicated) cluster. PyTorch is needed for one cell only, which writes the model's folder.

# COMMAND ----------

# MAGIC %pip install firesteel

# COMMAND ----------

dbutils.widgets.text("model", "/Volumes/main/default/models/language_model", "Model folder")
dbutils.widgets.text("devices", "cuda:0,cuda:1", "Devices of an executor, such as cpu:0,cpu:1")
dbutils.widgets.text("rows", "32", "Rows")
dbutils.widgets.text("length", "512", "Tokens of a row")

model = dbutils.widgets.get("model")
devices = dbutils.widgets.get("devices").split(",")
rows, length = int(dbutils.widgets.get("rows")), int(dbutils.widgets.get("length"))

# COMMAND ----------

# MAGIC %md
# MAGIC A model's folder is `config.json` and the module's `state_dict()`, saved by safetensors. Nothing is converted.

# COMMAND ----------

import json
import os

config = {
    "model_type": "torch_transformer",
    "part": "encoder",
    "vocab_size": 10_000,
    "d_model": 512,
    "nhead": 8,
    "num_encoder_layers": 6,
    "dim_feedforward": 2048,
}

if not os.path.exists(model):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module = torch.nn.Module()
    module.embedding = torch.nn.Embedding(10_000, 512)
    module.encoder = torch.nn.Transformer(d_model=512, nhead=8, num_encoder_layers=6, batch_first=True).encoder
    os.makedirs(model)
    save_file(module.state_dict(), f"{model}/model.safetensors")
    with open(f"{model}/config.json", "w") as file:
        json.dump(config, file)

# COMMAND ----------

# MAGIC %md
# MAGIC Rows of token ids, made up by Spark.

# COMMAND ----------

words = f"transform(sequence(1, {length}), place -> cast(pmod(xxhash64(id, place), 10000) AS int))"
batch = spark.range(0, rows, 1, 2).selectExpr("id", f"{words} AS ids")

# COMMAND ----------

# MAGIC %md
# MAGIC `parallel="replicate"` puts the whole model on each device. One task at a time has all of them, so let a task take all GPUs
# MAGIC of its executor: `spark.task.resource.gpu.amount`.

# COMMAND ----------

import firesteel

states = firesteel.hidden_states_udf(model, "first", devices=devices, parallel="replicate", threads=os.cpu_count())
scored = firesteel.score(batch, states, "ids", output="state").cache()
scored.selectExpr("count(*) AS rows", "min(size(state)) AS width").show()

# COMMAND ----------

# MAGIC %md
# MAGIC The same bits come out of one device: how many there are never shows in a result.

# COMMAND ----------

alone = firesteel.hidden_states_udf(model, "first", devices=devices[:1], threads=os.cpu_count())
compared = scored.select("id", "ids", "state").withColumn("alone", alone("ids"))
different = compared.where("state <> alone").count()
print(f"{different} of {rows} rows differ")
