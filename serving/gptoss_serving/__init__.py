"""The Ray Serve application that runs gpt-oss on vLLM: verified weights, the OpenAI routes, nothing else.

Ray imports ``gptoss_serving.app:build`` on its nodes; everything a node must know beyond the
application's arguments comes from its environment (``node.py``).
"""
