# Databricks notebook source
# MAGIC %md
# MAGIC # Classify and search
# MAGIC
# MAGIC A classifier as a SQL function, with a bar chart of the labels it gives; then a search whose best rows a cross-encoder puts in
# MAGIC order again, with a picture of the question's neighbours.
# MAGIC
# MAGIC Runs on a single-user (dedicated) cluster, on its CPUs. The model is a folder in Hugging Face layout, a copy of
# MAGIC all-MiniLM-L6-v2. Classifier and cross-encoder are made from it here, with NumPy: small ones, so that the notebook needs no
# MAGIC other download. With a folder of your own (any `*ForSequenceClassification`) leave out the cells that make them.

# COMMAND ----------

# MAGIC %pip install firesteel matplotlib

# COMMAND ----------

dbutils.widgets.text("model", "/Volumes/main/default/models/all-MiniLM-L6-v2", "Folder of all-MiniLM-L6-v2")
dbutils.widgets.text("made", "/Volumes/main/default/models/made", "Folder to write the two models into")
dbutils.widgets.text("question", "which function parses a date string?", "Question")

model, made, question = (dbutils.widgets.get(name) for name in ("model", "made", "question"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## The table
# MAGIC
# MAGIC One row for each function of PySpark: its name, what PySpark's documentation says about it, what Spark SQL's documentation says
# MAGIC about it, and its topic: the group of Spark's own documentation, which the session's JVM knows. Of synonyms, which share a text, one
# MAGIC is taken. Half of the rows are for training, the other half is held out.

# COMMAND ----------

import numpy as np
from firesteel.commands.demo import documentation

GROUPS = {
    "aggregate": ["agg_funcs"],
    "collection": ["array_funcs", "collection_funcs", "lambda_funcs", "map_funcs"],
    "date": ["datetime_funcs"],
    "math": ["math_funcs"],
    "parsing": ["csv_funcs", "json_funcs", "url_funcs", "variant_funcs", "xml_funcs"],
    "sketch": ["sketch_funcs"],
    "string": ["string_funcs"],
}
TOPICS = list(GROUPS)

topic_of_group = {group: topic for topic, groups in GROUPS.items() for group in groups}
known = {
    info.getName(): info
    for info in spark._jvm.org.apache.spark.sql.api.python.PythonSQLUtils.listBuiltinFunctionInfos()
}
named = {about: name for name, about in reversed(documentation()) if name in known}

rows = []
for place, (about, name) in enumerate(sorted(named.items(), key=lambda item: item[1])):
    usage = " ".join(known[name].getUsage().split()).partition(") - ")[2].partition(". ")[0]
    rows.append((name, about, usage, topic_of_group.get(known[name].getGroup()), place % 2 == 1))

functions = spark.createDataFrame(rows, "name string, about string, usage string, topic string, held_out boolean")
functions.createOrReplaceTempView("functions")
spark.sql(
    "SELECT topic, count(*) AS rows, count_if(held_out) AS held_out FROM functions GROUP BY topic ORDER BY topic"
).show()

# COMMAND ----------

# MAGIC %md
# MAGIC ## A model's folder
# MAGIC
# MAGIC A classifier is an encoder and a head: a dense layer with tanh, the pooler, and one that gives a number for each label. Of
# MAGIC MiniLM we take the first four layers of six, whose first token says more about a pair of texts than the last ones' does. The
# MAGIC pooler passes the first token's state on as it is (tanh(x) is x where x is small), so only the last layer is left to be fitted.

# COMMAND ----------

import json
import os
import shutil

LAYERS = 4


def read_weights(path: str) -> dict[str, np.ndarray]:
    """A safetensors file: the length of a header, the header in JSON, the tensors' bytes."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    floats = {name: tensor for name, tensor in header.items() if tensor.get("dtype") == "F32"}
    cut = {name: slice(*tensor["data_offsets"]) for name, tensor in floats.items()}
    return {name: np.frombuffer(data[cut[name]], "<f4").reshape(tensor["shape"]) for name, tensor in floats.items()}


def write_weights(path: str, weights: dict[str, np.ndarray]) -> None:
    header, data, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in weights.items():
        data.append(tensor.astype("<f4").tobytes())
        begin, end = end, end + len(data[-1])
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(f"{path}.new", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(data))
    os.replace(f"{path}.new", path)  # whoever has an older file open keeps it


def write_model(name: str, labels: list[str], weight: np.ndarray, bias: np.ndarray) -> str:
    """Writes a BertForSequenceClassification: the encoder and this last layer, [labels, width] and [labels]."""
    folder = f"{made}/{name}"
    os.makedirs(folder, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(f"{model}/{file}", f"{folder}/{file}")
    with open(f"{folder}/config.json", "w") as file:
        names = {str(number): label for number, label in enumerate(labels)}
        head = {"architectures": ["BertForSequenceClassification"], "id2label": names}
        json.dump(config | head | {"num_hidden_layers": LAYERS}, file)
    pooler = {"bert.pooler.dense.weight": np.eye(width) / 100, "bert.pooler.dense.bias": np.zeros(width)}
    write_weights(
        f"{folder}/model.safetensors",
        encoder | pooler | {"classifier.weight": 100 * weight, "classifier.bias": bias},
    )
    return folder


with open(f"{model}/config.json") as file:
    config = json.load(file)
width = config["hidden_size"]
dropped = ("pooler.", *(f"encoder.layer.{layer}." for layer in range(LAYERS, config["num_hidden_layers"])))
encoder = {
    f"bert.{name}": tensor
    for name, tensor in read_weights(f"{model}/model.safetensors").items()
    if not name.startswith(dropped)
}

# COMMAND ----------

# MAGIC %md
# MAGIC ## A classifier
# MAGIC
# MAGIC A model whose last layer is the identity gives the features; softmax regression on those of the training rows gives the last
# MAGIC layer of the classifier.

# COMMAND ----------

import firesteel


def fit(x: np.ndarray, y: np.ndarray, labels: int, steps: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression by gradient descent: weight [labels, width] and bias [labels]. Labels weigh alike, whatever their rows."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    x = (x - mean) / deviation
    share = (len(y) / labels / np.bincount(y, minlength=labels))[y, None]
    weight, bias = np.zeros((labels, x.shape[1])), np.zeros(labels)
    momentum = [np.zeros_like(weight), np.zeros_like(bias)]
    for _ in range(steps):
        scores = np.exp((scores := x @ weight.T + bias) - scores.max(axis=1, keepdims=True))
        wrong = share * (scores / scores.sum(axis=1, keepdims=True) - np.eye(labels)[y]) / len(y)
        momentum[0] = 0.9 * momentum[0] - 0.02 * (wrong.T @ x + 0.03 * weight)
        momentum[1] = 0.9 * momentum[1] - 0.02 * wrong.sum(axis=0)
        weight, bias = weight + momentum[0], bias + momentum[1]
    weight = weight / deviation
    return weight, bias - weight @ mean


features = firesteel.Engine(
    write_model("features", [f"state {i}" for i in range(width)], np.eye(width), np.zeros(width))
)
seen = [row for row in rows if row[3] and not row[4]]
states = features.classify([row[1] for row in seen], raw=True)
weight, bias = fit(states, np.array([TOPICS.index(row[3]) for row in seen]), len(TOPICS))
classifier = write_model("classifier", TOPICS, weight, bias)

# COMMAND ----------

# MAGIC %md
# MAGIC The classifier as a SQL function, on rows that it was not trained with.

# COMMAND ----------

firesteel.register(spark, "topic_of", firesteel.classify_udf(classifier))
spark.sql(
    "SELECT name, about, topic, topic_of(about) AS said FROM functions WHERE held_out AND topic IS NOT NULL"
).cache().createOrReplaceTempView("classified")
counted = spark.sql(
    """
    SELECT said.label, count(*) AS rows, count_if(said.label = topic) AS agreed
    FROM classified GROUP BY said.label ORDER BY rows DESC, label
    """
).collect()
accuracy = sum(row.agreed for row in counted) / sum(row.rows for row in counted)
(most,) = spark.sql(
    "SELECT max(rows) / sum(rows) FROM (SELECT count(*) AS rows FROM classified GROUP BY topic)"
).first()
print(
    f"{accuracy:.0%} of {sum(row.rows for row in counted)} held-out rows are right; the most frequent topic alone has {most:.0%}"
)

# COMMAND ----------

import matplotlib.pyplot as plt

bars, axes = plt.subplots(figsize=(8, 4), layout="constrained")
labels, agreed = [row.label for row in counted], np.array([row.agreed for row in counted])
others = np.array([row.rows for row in counted]) - agreed
axes.barh(labels, agreed, color="#2a6f97", label="Spark's documentation has it there too")
axes.barh(labels, others, left=agreed, color="#e09f3e", label="it has it elsewhere")
for place, count in enumerate(agreed + others):
    axes.text(count + 0.4, place, str(count), va="center")
axes.invert_yaxis()
axes.set(xlabel="held-out functions", title="Labels that the classifier gives")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
plt.show()

# COMMAND ----------

# MAGIC %md
# MAGIC The rows it is most and least certain of.

# COMMAND ----------

certain = spark.sql("SELECT round(said.score, 3) AS score, said.label, topic, name, about FROM classified")
certain.orderBy(certain.score.desc(), "name").show(5, truncate=60)
certain.orderBy(certain.score.asc(), "name").show(5, truncate=60)

# COMMAND ----------

# MAGIC %md
# MAGIC ## A cross-encoder
# MAGIC
# MAGIC It reads a question and a document together and gives one number: a classifier of pairs with one label. A question for training is
# MAGIC a function's name in words or what Spark SQL says about it; the right document is what PySpark says. Wrong ones are those whose
# MAGIC vectors are nearest to the question's, which the search would confuse with it, and one at random.

# COMMAND ----------

vectors = firesteel.Engine(model)
random = np.random.default_rng(0)


def pairs_of(part: list[tuple], wrong: int) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Questions, documents, whether the document is the right one, and the cosine; for each question the right one comes first."""
    asked = [row[2] if place % 2 and row[2] else row[0].replace("_", " ") for place, row in enumerate(part)]
    cosines = vectors.embed(asked) @ vectors.embed([row[1] for row in part]).T
    chosen = []
    for right, cosine in enumerate(cosines):
        near = [place for place in np.argsort(-cosine) if place != right][:wrong]
        chosen.append([right, *near, random.choice(np.delete(np.arange(len(part)), [right, *near]))])
    chosen = np.array(chosen)
    questions = [text for text in asked for _ in range(wrong + 2)]
    is_right = np.tile([1] + [0] * (wrong + 1), len(asked))
    return questions, [part[p][1] for p in chosen.ravel()], is_right, np.take_along_axis(cosines, chosen, axis=1)


questions, documents, is_right, _ = pairs_of([row for row in rows if not row[4]], 3)
weight, bias = fit(features.classify(questions, documents, raw=True), is_right, 2)
reranker = write_model("reranker", ["relevance"], weight[1:] - weight[:1], bias[1:] - bias[:1])
features.close()

# COMMAND ----------

# MAGIC %md
# MAGIC How often does the right document score higher than a wrong one, for functions that it was not trained with?
# MAGIC
# MAGIC This cross-encoder is a stand-in: only its last layer ever saw a pair, of some 250 functions. It tells right from near much
# MAGIC better than chance (50 %), but hardly better than the vectors do, and knows less of what is far. It shows how a cross-encoder is
# MAGIC used, not what a good one finds: `cross-encoder/ms-marco-MiniLM-L6-v2`, say, is trained as a whole, with real questions, and goes
# MAGIC into the same place.

# COMMAND ----------

questions, documents, is_right, cosines = pairs_of([row for row in rows if row[4]], 2)
with firesteel.Engine(reranker) as engine:
    relevance = engine.rerank(questions, documents).reshape(cosines.shape)
vectors.close()

near, far = slice(1, -1), slice(-1, None)
for kind, wrong in (("one of the two nearest", near), ("one at random", far)):
    by_relevance = (relevance[:, :1] > relevance[:, wrong]).mean()
    by_cosine = (cosines[:, :1] > cosines[:, wrong]).mean()
    print(f"right before {kind}: {by_relevance:.0%} by the cross-encoder, {by_cosine:.0%} by the vectors' cosine")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Search
# MAGIC
# MAGIC The vectors find twenty rows of the whole table, which is quick; the cross-encoder reads these twenty with the question and puts
# MAGIC them in order.

# COMMAND ----------

embed_text = firesteel.embed_udf(model)
firesteel.register(spark, "embed_text", embed_text)
firesteel.register(spark, "relevance", firesteel.rerank_udf(reranker))
embedded = firesteel.score(spark.table("functions"), embed_text, "about", output="vector").cache()
embedded.createOrReplaceTempView("embedded")

nearest = spark.sql(
    """
    WITH question AS (SELECT embed_text(:question) AS q),
    nearest AS (
        SELECT name, about, vector, q, aggregate(zip_with(vector, q, (x, y) -> double(x * y)), 0D, (sum, x) -> sum + x) AS cosine
        FROM embedded CROSS JOIN question
        ORDER BY cosine DESC, name LIMIT 20
    )
    SELECT *, relevance(:question, about) AS relevance FROM nearest
    """,
    args={"question": question},
).cache()
nearest.createOrReplaceTempView("nearest")
found = spark.sql(
    """
    SELECT row_number() OVER (ORDER BY relevance DESC, name) AS place,
           row_number() OVER (ORDER BY cosine DESC, name) AS by_cosine, *
    FROM nearest ORDER BY place
    """
).cache()
found.selectExpr("place", "by_cosine", "round(relevance, 3) AS relevance", "name", "about").show(10, truncate=60)

# COMMAND ----------

# MAGIC %md
# MAGIC The question and its neighbours: vectors of 384 numbers, seen from the side on which they differ most (their first two
# MAGIC principal components), so what is near here is mostly near there. Numbers are places in the new order; on the
# MAGIC right, where each row was before.

# COMMAND ----------

from matplotlib.transforms import Bbox

neighbours = found.collect()
picture, (left, right) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained", width_ratios=(3, 2))

points = np.array([row.vector for row in neighbours])
center = points.mean(axis=0)
_, _, axes_of_most = np.linalg.svd(points - center, full_matrices=False)
x, y = ((points - center) @ axes_of_most[:2].T).T
asked_x, asked_y = (np.array(neighbours[0].q) - center) @ axes_of_most[:2].T
shades = plt.cm.viridis(np.linspace(0, 0.85, len(neighbours)))
left.scatter(x, y, c=shades, s=45)
left.scatter(asked_x, asked_y, marker="*", s=260, color="#d1495b", zorder=3)
left.set(title="Neighbours of the question", xticks=[], yticks=[])
left.margins(0.2, 0.1)

for row, shade in zip(neighbours, shades, strict=True):
    right.plot([0, 1], [row.by_cosine, row.place], color=shade, marker="o", lw=1.5)
    right.text(-0.04, row.by_cosine, row.name, ha="right", va="center", color=shade, fontsize=9)
    right.text(1.04, row.place, f"{row.place} {row.name}", va="center", color=shade, fontsize=9)
right.set(title="Order by cosine, then by the cross-encoder", xlim=(-0.9, 1.9))
right.invert_yaxis()
right.axis("off")

# A name goes to the first place around its point where it is within the frame and covers no other name and no point.
picture.canvas.draw()
picture.set_layout_engine("none")
places = [(dx, dy, align) for dy in (-4, 8, -16) for dx, align in ((10, "left"), (-10, "right"))]
places += [(0, 9, "center"), (0, -17, "center"), (0, 20, "center"), (0, -28, "center")]
frame = left.get_window_extent()
spots = left.transData.transform(np.column_stack([[asked_x, *x], [asked_y, *y]]))
taken = [Bbox.from_extents(px - 6, py - 6, px + 6, py + 6) for px, py in spots]
wanted = [("the question", asked_x, asked_y, "#d1495b")]
wanted += [(f"{row.place} {row.name}", *at) for row, *at in zip(neighbours, x, y, shades, strict=True)]
names = []
for name, at_x, at_y, color in wanted:
    for dx, dy, align in places:
        text = left.annotate(
            name, (at_x, at_y), (dx, dy), textcoords="offset points", ha=align, color=color, fontsize=9
        )
        box = text.get_window_extent()
        if frame.x0 < box.x0 and box.x1 < frame.x1 and not box.count_overlaps(taken):
            taken.append(box.padded(2))
            names.append(text)
            break
        text.remove()  # without a free place, a name is on the right alone
plt.show()
