"""What bad input gets in Spark: on the driver, at once, where the driver can know it; else in the exception it sees."""

import json
import shutil

import firesteel
import pytest
import tiny

CHECKPOINT, CONFIG, REQUEST = firesteel.CheckpointError, firesteel.ConfigError, firesteel.RequestError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("errors") / "model"))


OPTIONS = [
    ({"poling": "cls"}, CONFIG, "embed_udf has no option poling; did you mean pooling?"),
    ({"batch_size": 32}, CONFIG, "embed_udf has no option batch_size; its options are pooling, "),
    ({"pooling": "median"}, CONFIG, "pooling median is not known; known are cls, max, mean"),
    ({"pooling": []}, CONFIG, "a mode or a list of modes belongs there"),
    ({"pooling": 3}, CONFIG, "pooling is 3"),
    ({"normalize": "yes"}, REQUEST, "normalize is 'yes'; True, False or \"auto\" belongs there"),
    ({"normalize": 1}, REQUEST, "normalize is 1"),
    ({"max_length": 0}, REQUEST, "max_length is 0; a whole number from 1 on"),
    ({"max_length": 2.5}, REQUEST, "max_length is 2.5"),
    ({"max_length": True}, REQUEST, "max_length is True"),
    ({"max_length": 65}, REQUEST, "max_length is 65; the model has 64 positions, so 1 to 64 belongs there"),
    ({"dimensions": -1}, REQUEST, "dimensions is -1"),
    ({"dimensions": 49}, REQUEST, "dimensions is 49; vectors have 48, so 1 to 48 belongs there"),
    ({"dimensions": 97, "pooling": ["cls", "mean"]}, REQUEST, "dimensions is 97; vectors have 96"),
    ({"prompt": 7}, REQUEST, "prompt is a int; a string or None belongs there"),
    ({"truncate": "cut"}, REQUEST, 'truncate is \'cut\'; True, "left", "right" or "error" belongs there'),
    ({"truncate": False}, REQUEST, "truncate is False"),
    ({"details": "yes"}, CONFIG, "details is 'yes'; True or False belongs there"),
    ({"on_error": "ignore"}, CONFIG, 'on_error is \'ignore\'; "fail" or "null" belongs there'),
    ({"max_errors": 1.5}, CONFIG, "max_errors is 1.5; a share of the rows from 0 to 1"),
    ({"max_errors": True}, CONFIG, "max_errors is True"),
    ({"max_errors": "half"}, CONFIG, "max_errors is 'half'"),
]


def named(cases):
    return [", ".join(f"{name}={value!r}" for name, value in options.items()) for options, _, _ in cases]


@pytest.mark.parametrize(("options", "kind", "words"), OPTIONS, ids=named(OPTIONS))
def test_a_wrong_option_is_refused_on_the_driver(model, options, kind, words):
    with pytest.raises(kind) as refused:
        firesteel.embed_udf(model, **options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


# Of the engine: any UDF tells them, and by the sentence that an engine would fail with. The last ones are told of the
# model, which has 3 heads and 2 layers.
CPUS = ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]
ENGINE = [
    ({"devices": 1}, "devices is 1"),
    ({"devices": []}, "devices is []"),
    ({"devices": ["cpu:0", None]}, "devices is ['cpu:0', None]"),
    ({"devices": "cpu\n"}, "devices is 'cpu\\n'"),
    ({"devices": "tpu:0"}, "'tpu:0' is of no known kind"),
    ({"devices": "measure"}, "'measure' is of no known kind"),
    ({"devices": "cuda:x"}, "'cuda:x' is no device"),
    ({"devices": ["cuda:1", "cuda:1"]}, "'cuda:1' and 'cuda:1' are the same device"),
    ({"devices": ["cuda:0", "cpu:0"]}, "are of two kinds"),
    ({"devices": ["auto", "cpu:1"]}, '"auto" stands alone'),
    ({"devices": "cpu:1"}, "'cpu:1' lies beyond the 1 named"),
    ({"devices": [f"cuda:{i}" for i in range(65)]}, "devices names 65 devices; name 1 to 64"),
    ({"parallel": "sideways"}, "'sideways' is no way to place a model"),
    ({"parallel": 2}, "parallel is 2"),
    ({"parallel": "split\0"}, "parallel is 'split\\x00'"),
    ({"parallel": "split=2,split=2", "devices": "cuda"}, "names split twice"),
    ({"parallel": "split=0"}, "a whole number from 1 to 9999"),
    ({"parallel": "stream=2"}, "stream takes no number"),
    ({"parallel": "tensor,split", "devices": CPUS}, "gives neither split nor tensor a number"),
    ({"parallel": "tensor=2,stream"}, "none can be streamed"),
    ({"parallel": "split=2", "devices": "cpu"}, "places the model on 2 devices and devices names 1"),
    ({"parallel": "replicate=3,split=2", "devices": CPUS}, "multiply to 4"),
    ({"parallel": "split=3", "devices": ["cuda:0", "cuda:1"]}, "places the model on 3 devices and devices names 2"),
    ({"dtype": "bf17"}, 'dtype "bf17" is not known; there are "auto", "fp32", "fp16" and "bf16"'),
    ({"dtype": "int8"}, "dtype int8 is not computed on any device yet"),
    ({"dtype": None}, "dtype is None"),
    ({"dtype": "bf16", "devices": CPUS[:2]}, "dtype bf16 is not computed on cpu:0; there is fp32, and"),
    ({"max_memory": "much"}, "max_memory is 'much'; bytes or a size such as \"2GB\""),
    ({"max_memory": 0}, "max_memory is 0"),
    ({"threads": 0}, "threads is 0; a whole number from 1 to 4096, or None"),
    ({"threads": "2"}, "threads is '2'"),
    ({"threads": 4097}, "threads is 4097"),
    ({"threads": 1025, "devices": "cpu"}, "threads is 1025; a CPU device takes 1 to 1024"),
    ({"cpu_path": 3}, "cpu_path is 3"),
    ({"cpu_path": "sse"}, "there is no CPU path sse; choose one of "),
    ({"cpu_path": "portable", "devices": "cuda"}, "cuda:0: cpu_path='portable' is for CPU devices"),
    ({"parallel": "tensor", "devices": CPUS[:2]}, "2 devices cannot share the model's 3 attention heads"),
    ({"parallel": "split", "devices": CPUS}, "cuts the model's 2 layers into 4 stages"),
]


@pytest.mark.parametrize("make", [firesteel.embed_udf, firesteel.hidden_states_udf], ids=lambda make: make.__name__)
@pytest.mark.parametrize(("options", "words"), ENGINE, ids=[str(options)[:60] for options, _ in ENGINE])
def test_the_driver_tells_what_an_engine_would(model, options, words, make):
    said = []
    for ask in (make, firesteel.Engine):
        with pytest.raises(CONFIG) as refused:
            ask(model, **options)
        said.append(str(refused.value))
    assert words in said[0] and "\n" not in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize("make", [firesteel.embed_udf, firesteel.hidden_states_udf], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "options",
    [
        {"devices": "cuda", "parallel": "replicate=2,split=3", "dtype": "bf16"},
        {"devices": "cuda:7", "dtype": "fp16"},
        {"devices": ["cuda:3", "cuda:1"], "parallel": "split", "threads": 4096},
        {"devices": "auto", "parallel": "split=2,stream", "dtype": "bf16", "max_memory": "2GB"},
        {"cpu_path": firesteel._core.host()["paths"][0][0], "threads": 2000},
    ],
    ids=str,
)
def test_what_executors_alone_can_tell_is_left_to_them(model, options, make):
    said = dict(make(model, **options).job.engine)
    assert {name: said[name] for name in options} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }


@pytest.mark.parametrize("wrong", [None, 7, "", b"folder"], ids=repr)
def test_a_model_that_is_no_path(wrong):
    with pytest.raises(firesteel.Error, match="a folder, .* belongs there"):
        firesteel.embed_udf(wrong)


def broken(folder, what):
    """Does one bad thing to a good model folder."""
    if what == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    if what == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    if what == "truncated":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-1000])
    if what in ("architecture", "key"):
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "gpt9"} if what == "architecture" else {"hidden_act": "spline"}
        (folder / "config.json").write_text(json.dumps(config))


BROKEN = [
    ("empty", CHECKPOINT, "config.json is missing"),
    ("pickle", CHECKPOINT, "pickles can run code"),
    ("truncated", CHECKPOINT, "truncated, 1000 of"),
    ("architecture", CONFIG, "gpt9"),
    ("key", CONFIG, "spline"),
]


@pytest.mark.parametrize(("what", "kind", "words"), BROKEN, ids=[what for what, _, _ in BROKEN])
def test_a_broken_checkpoint_is_refused_on_the_driver(tmp_path, what, kind, words):
    broken(tiny.write(tmp_path / "model"), what)
    with pytest.raises(kind) as refused:
        firesteel.embed_udf(tmp_path / "model")
    assert words in str(refused.value)


@pytest.mark.spark
def test_score_checks_the_table_before_anything_runs(spark, model):
    df = spark.createDataFrame([(1, "a", 2.0)], "id int, text string, price double")
    vectors = firesteel.embed_udf(model)
    cases = [
        (("txet",), {}, CONFIG, "the table has no column 'txet'; did you mean text? its columns are id, text, price"),
        ((["text"],), {}, CONFIG, "score takes names of columns"),
        ((), {}, CONFIG, "embed_udf takes 1 column; 0 were given"),
        (("text", "id"), {}, CONFIG, "embed_udf takes 1 column; 2 were given"),
        (("price",), {}, REQUEST, "column price is double; string (text) or array<int> (token ids), or for models"),
        (("text",), {"output": "Price"}, CONFIG, "output is 'Price', which the table already has"),
        (("text",), {"output": ""}, CONFIG, "output is ''"),
        (("text",), {"output": "caf\udce9"}, CONFIG, "the name of the new column belongs there"),
    ]
    for columns, options, kind, words in cases:
        with pytest.raises(kind) as refused:
            firesteel.score(df, vectors, *columns, **options)
        assert words in str(refused.value)
    with pytest.raises(CONFIG, match="what firesteel.embed_udf returns"):
        firesteel.score(df, "text")
    for other in (None, "text", [1], df.toPandas()):
        with pytest.raises(CONFIG, match=f"df is a {type(other).__name__}; a DataFrame of Spark belongs there"):
            firesteel.score(other, vectors, "text")
        with pytest.raises(CONFIG, match=f"spark is a {type(other).__name__}; a SparkSession belongs there"):
            firesteel.register(other, "embed_text", vectors)
    twice = df.selectExpr("text", "text")
    with pytest.raises(CONFIG, match="has 2 columns 'text'"):
        firesteel.score(twice, vectors, "text")
    with pytest.raises(CONFIG, match="takes 1 column; 2 were given"):
        vectors("text", "id")


def missing(spark, model, folder):
    return spark.range(1).selectExpr("'a' AS t"), firesteel.embed_udf(folder / "missing"), "t"


def removed(spark, model, folder):
    """It was there when the function was made."""
    vectors = firesteel.embed_udf(tiny.write(folder / "model"))
    shutil.rmtree(folder / "model")
    return spark.range(1).selectExpr("'a' AS t"), vectors, "t"


def changed(spark, model, folder):
    """As on a node that has other files than the driver."""
    vectors = firesteel.embed_udf(tiny.write(folder / "model"))
    tiny.write(folder / "model", act="relu")
    return spark.range(1).selectExpr("'a' AS t"), vectors, "t"


def retrained(spark, model, folder):
    """Weights of the same names, shapes and size, saved between making the function and using it."""
    vectors = firesteel.embed_udf(tiny.write(folder / "model"), manager=False)
    tiny.write(folder / "model", seed=1)
    return spark.range(1).selectExpr("'a' AS t"), vectors, "t"


def extra_tensor(spark, model, folder):
    tiny.write(folder / "model")
    weights = tiny.tensors(tiny.config())
    weights["encoder.layer.7.attention.self.query.weight"] = weights["pooler.dense.weight"]
    tiny.write_safetensors(folder / "model" / "model.safetensors", weights)
    return spark.range(1).selectExpr("'a' AS t"), firesteel.embed_udf(folder / "model"), "t"


def no_tokenizer(spark, model, folder):
    tiny.write(folder / "model")
    (folder / "model" / "tokenizer.json").unlink()
    return spark.range(1).selectExpr("'a' AS t"), firesteel.embed_udf(folder / "model"), "t"


def no_device(spark, model, folder):
    return spark.range(1).selectExpr("'a' AS t"), firesteel.embed_udf(model, devices="cuda:4095"), "t"


def no_memory(spark, model, folder):
    return spark.range(1).selectExpr("'a' AS t"), firesteel.embed_udf(model, max_memory=1000), "t"


def number(spark, model, folder):
    return spark.range(1), firesteel.embed_udf(model), "id"


def too_long(spark, model, folder):
    return spark.range(1).selectExpr("repeat('row ', 70) AS t"), firesteel.embed_udf(model, truncate="error"), "t"


def bad_utf8(spark, model, folder):
    return spark.sql("SELECT CAST(unhex('61ff') AS string) AS t"), firesteel.embed_udf(model), "t"


def unknown_id(spark, model, folder):
    return spark.sql("SELECT array(2, 160, 3) AS t"), firesteel.embed_udf(model), "t"


def too_many_errors(spark, model, folder):
    df = spark.range(0, 3000, 1, 1).selectExpr("repeat('row ', if(id % 3 = 0, 1, 70)) AS t")
    return df, firesteel.embed_udf(model, truncate="error", details=True), "t"


IN_A_TASK = [
    (missing, "CheckpointError", "no such folder; give the folder that holds config.json"),
    (removed, "CheckpointError", "no such folder; the driver saw it when the column function was made"),
    (changed, "CheckpointError", "/model/config.json: differs from the file that the driver saw"),
    (retrained, "CheckpointError", "/model/model.safetensors: differs from the file that the driver saw"),
    (extra_tensor, "CheckpointError", "encoder.layer.7.attention.self.query.weight"),
    (no_tokenizer, "CheckpointError", "tokenizer.json is missing"),
    (no_device, "DeviceError", "cuda:"),
    (no_memory, "OutOfMemory", "are missing; raise max_memory"),
    (number, "RequestError", "the column given to embed_udf is bigint; string (text) or array<int>"),
    (too_long, "RequestError", "row 0 of the partition (TOO_LONG): the row has 72 tokens; the limit is 64"),
    (bad_utf8, "RequestError", "row 0 of the partition (BAD_UTF8): byte 1 of the text is not UTF-8"),
    (unknown_id, "RequestError", "row 0 of the partition (SCHEMA): "),
    (too_many_errors, "RequestError", "are TOO_LONG, as: the row has 72 tokens; the limit is 64"),
]


@pytest.mark.spark
@pytest.mark.parametrize(("case", "kind", "words"), IN_A_TASK, ids=[case.__name__ for case, _, _ in IN_A_TASK])
def test_a_sentence_from_a_task_reaches_the_driver(spark, model, tmp_path, case, kind, words):
    df, vectors, column = case(spark, model, tmp_path)
    with pytest.raises(Exception) as failed:
        df.select(vectors(column)).collect()
    assert f"{kind}: " in str(failed.value) and words in str(failed.value)
    assert spark.range(3).count() == 3


@pytest.mark.spark
def test_rows_that_cannot_be_computed_become_null_where_that_is_asked_for(spark, model):
    df = spark.sql(
        """SELECT * FROM VALUES (0, 'first row'), (1, repeat('row ', 70)), (2, CAST(unhex('ff') AS string)), (3, NULL)
           AS v(id, text)"""
    )
    options = {"truncate": "error"}
    plain = df.select("id", firesteel.embed_udf(model, on_error="null", **options)("text").alias("v")).collect()
    assert [row.v is None for row in sorted(plain)] == [False, True, True, True]
    detailed = df.select("id", firesteel.embed_udf(model, details=True, **options)("text").alias("v")).collect()
    assert [row.v and row.v.error_code for row in sorted(detailed)] == [None, "TOO_LONG", "BAD_UTF8", None]
    strict = firesteel.embed_udf(model, details=True, on_error="fail", **options)
    with pytest.raises(Exception, match="of the partition"):
        df.select(strict("text")).collect()


@pytest.mark.spark
@pytest.mark.parametrize(("knob", "value"), [("threads", "many"), ("cpu_path", "sse"), ("batch_tokens", "-5")])
def test_a_wrong_knob_in_the_session_conf_is_named(spark, tmp_path, knob, value):
    vectors = firesteel.embed_udf(tiny.write(tmp_path / "model"))
    spark.conf.set(f"spark.firesteel.{knob}", value)
    try:
        with pytest.raises(Exception) as failed:
            spark.range(1).selectExpr("'a' AS t").select(vectors("t")).collect()
    finally:
        spark.conf.unset(f"spark.firesteel.{knob}")
    assert "ConfigError: " in str(failed.value) and value in str(failed.value)
    assert spark.range(1).selectExpr("'a' AS t").select(vectors("t")).count() == 1
