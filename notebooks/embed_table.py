# Databricks notebook source
# MAGIC %md
# MAGIC # Embed a table
# MAGIC
# MAGIC A text column becomes a column of sentence vectors, stored as a table, and answers a question by similarity.
# MAGIC
# MAGIC Runs on a single-user (dedicated) cluster, on its CPUs. The model is a folder in Hugging Face layout (`config.json`,
# MAGIC `*.safetensors`, `tokenizer.json`), for example a copy of all-MiniLM-L6-v2 in a volume.

# COMMAND ----------

# MAGIC %pip install firesteel

# COMMAND ----------

dbutils.widgets.text("model", "/Volumes/main/default/models/all-MiniLM-L6-v2", "Model folder")
dbutils.widgets.text("source", "samples.wanderbricks.reviews", "Table with the text")
dbutils.widgets.text("column", "comment", "Text column")
dbutils.widgets.text("target", "main.default.review_vectors", "Table to write")
dbutils.widgets.text("question", "a quiet place near the beach", "Question")

model, source, column, target, question = (
    dbutils.widgets.get(name) for name in ("model", "source", "column", "target", "question")
)

# COMMAND ----------

# MAGIC %md
# MAGIC `embed_udf` checks the model and all options here, on the driver, and touches no device. Re-running this cell loads
# MAGIC nothing again: workers keep a model as long as they live.

# COMMAND ----------

import firesteel
import pyspark.sql.functions as F

vectors = firesteel.embed_udf(model)
vectors

# COMMAND ----------

# MAGIC %md
# MAGIC Write the vectors before anything else is done with them: Spark may compute a column a second time for a filter or
# MAGIC a sort on it. With `details=True` a row that cannot be computed gets a reason instead of failing the job.

# COMMAND ----------

detailed = firesteel.embed_udf(model, details=True)
scored = firesteel.score(spark.table(source), detailed, column, output="embedding")
scored.write.mode("overwrite").saveAsTable(target)

# COMMAND ----------

stored = spark.table(target)
stored.groupBy("embedding.error_code").agg(
    F.count("*").alias("rows"), F.sum("embedding.prompt_tokens").alias("tokens")
).show()

# COMMAND ----------

# MAGIC %md
# MAGIC The same function in SQL. Vectors of this model have length 1, so the sum of products is their cosine.

# COMMAND ----------

firesteel.register(spark, "embed_text", vectors)
nearest = spark.sql(
    f"""
    WITH question AS (SELECT embed_text(:question) AS q)
    SELECT round(aggregate(zip_with(embedding.result, q, (x, y) -> double(x * y)), 0D, (sum, x) -> sum + x), 3) AS score,
           `{column}`
    FROM {target} CROSS JOIN question
    WHERE embedding.result IS NOT NULL
    ORDER BY score DESC
    LIMIT 5
    """,
    args={"question": question},
)
nearest.show(truncate=False)
