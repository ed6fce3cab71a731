"""What client libraries make of the server, with their defaults.

usage: clients.py CASE, with a JSON object on standard input: {"url": …, "model": …, "ranker": …,
"texts": […], "query": …}

Prints a JSON object: "vectors" for the texts (and "query" for the query where the client embeds
queries otherwise), "scores" by the place of the text, or "raised" and "message".
"""

import json
import sys

ASK = json.load(sys.stdin)
URL, MODEL, RANKER = ASK["url"], ASK.get("model"), ASK.get("ranker")
TEXTS, QUERY = ASK.get("texts", []), ASK.get("query")


def openai_client(**more):
    import openai

    return openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, **more)


def openai():
    # Its default asks for base64 and decodes it.
    data = openai_client().embeddings.create(model=MODEL, input=TEXTS).data
    [query] = openai_client().embeddings.create(model=MODEL, input=QUERY, encoding_format="float").data
    return {"vectors": [row.embedding for row in data], "query": query.embedding}


def openai_models():
    client = openai_client()
    ids = [model.id for model in client.models.list()]
    return {"ids": ids, "one": client.models.retrieve(MODEL).id}


def openai_errors():
    import openai

    client, raised = openai_client(timeout=30), {}
    asks = {
        "plain": {"model": MODEL, "input": "a"},
        "too long": {"model": MODEL, "input": "word " * 1000},
        "wrong type": {"model": MODEL, "input": {"a": 1}},
        "unknown encoding": {"model": MODEL, "input": "a", "encoding_format": "fp16"},
        "unknown model": {"model": "nobody", "input": "a"},
        "empty input": {"model": MODEL, "input": []},
        "wrong dimensions": {"model": MODEL, "input": "a", "dimensions": 7},
        "another space": {"model": MODEL, "input": "a", "extra_headers": {"X-Expect-Embedding-Space": "es1-0"}},
        "too many texts": {"model": MODEL, "input": ["a"] * ASK.get("too_many", 0)},
    }
    for what, ask in asks.items():
        try:
            client.embeddings.create(**ask)
            raised[what] = None
        except openai.APIStatusError as error:
            raised[what] = [type(error).__name__, error.status_code, error.code]
    return raised


def langchain_openai():
    import os

    os.environ["TIKTOKEN_CACHE_DIR"] = ASK["tiktoken"]
    import openai
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(model=MODEL, base_url=f"{URL}/v1", api_key="none", max_retries=0,
                                  **ASK.get("options", {}))
    try:
        return {"vectors": embeddings.embed_documents(TEXTS), "query": embeddings.embed_query(QUERY)}
    except openai.APIStatusError as error:
        return {"raised": type(error).__name__, "message": str(error)}


def langchain_huggingface():
    from huggingface_hub import InferenceClient
    from langchain_huggingface import HuggingFaceEndpointEmbeddings

    # It takes no address itself (since 1.2), but whatever client it is given.
    embeddings = HuggingFaceEndpointEmbeddings()
    embeddings.client = InferenceClient(base_url=URL)
    return {"vectors": embeddings.embed_documents(TEXTS), "query": embeddings.embed_query(QUERY)}


def huggingface_hub():
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=URL)
    vectors = client.feature_extraction(TEXTS)
    [query] = client.feature_extraction(QUERY)
    return {"vectors": vectors.tolist(), "query": query.tolist()}


def llama_index():
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    embeddings = TextEmbeddingsInference(model_name=MODEL, base_url=URL, timeout=60)
    return {"vectors": embeddings.get_text_embedding_batch(TEXTS), "query": embeddings.get_query_embedding(QUERY)}


def haystack_embed():
    from haystack import Document
    from haystack_integrations.components.embedders.huggingface_api import (
        HuggingFaceAPIDocumentEmbedder,
        HuggingFaceAPITextEmbedder,
    )

    where = {"api_type": "text_embeddings_inference", "api_params": {"url": URL}, "token": None}
    documents = HuggingFaceAPIDocumentEmbedder(**where).run([Document(content=text) for text in TEXTS])["documents"]
    query = HuggingFaceAPITextEmbedder(**where).run(QUERY)["embedding"]
    return {"vectors": [document.embedding for document in documents], "query": query}


def haystack_rank():
    from haystack import Document
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    ranker = HuggingFaceTEIRanker(url=URL, top_k=len(TEXTS), token=None)
    documents = [Document(content=text, meta={"place": place}) for place, text in enumerate(TEXTS)]
    ranked = ranker.run(query=QUERY, documents=documents)["documents"]
    return {"scores": {document.meta["place"]: document.score for document in ranked}}


def cohere_client():
    import cohere

    return cohere.ClientV2(api_key="none", base_url=URL)


def cohere_embed():
    client = cohere_client()

    def embed(texts, input_type):
        answer = client.embed(model=MODEL, texts=texts, input_type=input_type, embedding_types=["float"])
        return answer.embeddings.float_

    [query] = embed([QUERY], "search_query")
    return {"vectors": embed(TEXTS, "search_document"), "query": query}


def cohere_types():
    types = ["int8", "uint8", "binary", "ubinary"]
    answer = cohere_client().embed(model=MODEL, texts=TEXTS, input_type="search_document", embedding_types=types)
    return {name: getattr(answer.embeddings, name) for name in types}


def cohere_rerank():
    answer = cohere_client().rerank(model=RANKER, query=QUERY, documents=TEXTS)
    return {"scores": {result.index: result.relevance_score for result in answer.results}}


def cohere_errors():
    import cohere

    try:
        cohere_client().embed(model="nobody", texts=["a"], input_type="search_query", embedding_types=["float"])
    except cohere.core.ApiError as error:
        return {"raised": type(error).__name__, "status": error.status_code}


def ollama():
    import ollama

    client = ollama.Client(host=URL)
    vectors = client.embed(model=MODEL, input=TEXTS).embeddings
    [query] = client.embed(model=f"{MODEL}:latest", input=QUERY).embeddings
    old = client.embeddings(model=MODEL, prompt=QUERY).embedding
    names = [model.model for model in client.list().models]
    raised = None
    try:
        client.embed(model="nobody", input="a")
    except ollama.ResponseError as error:
        raised = error.status_code
    plain = lambda rows: [list(row) for row in rows]
    return {"vectors": plain(vectors), "query": list(query), "old": list(old), "names": names, "raised": raised}


def main():
    print(json.dumps(globals()[sys.argv[1]]()))


if __name__ == "__main__":
    main()
