"""A reward model behind a URL, for OpenRLHF on other machines:

    python examples/openrlhf_server.py my-reward/ --chat --port 5000
    python -m openrlhf.cli.train_ppo_ray --reward.remote_url http://HOST:5000/get_reward ...

`my-reward/` is what `RewardPipeline.save_pretrained` wrote. OpenRLHF posts {"query": [...], "prompts": [...],
"labels": [...]}, usually one text at a time from many connections: what comes while a batch is computed goes into the
next. Whoever reaches the port can ask; keep it within your network.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lensmith.rewards import openrlhf_reward_func

parser = argparse.ArgumentParser(description="Rewards for OpenRLHF's --reward.remote_url.")
parser.add_argument("model", help="folder or repository of a reward pipeline")
parser.add_argument("--chat", action="store_true", help="prompts went through a chat template")
parser.add_argument("--device", help="as cuda:1 [default: the first GPU, else the CPU]")
parser.add_argument("--host", default="127.0.0.1", help="address to listen at [127.0.0.1]")
parser.add_argument("--port", type=int, default=5000, help="[5000]")
options = parser.parse_args()
reward_func = openrlhf_reward_func(options.model, chat=options.chat, device=options.device)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = reward_func(asked["query"], asked["prompts"], asked["labels"])
            spread = found["extra_logs"]["reward_spread"].tolist()
            scores = {name: found[name].tolist() for name in ("rewards", "scores")}
            self.answer(200, {**scores, "extra_logs": {"reward_spread": spread}})
        except (KeyError, TypeError, ValueError) as error:
            self.answer(400, {"error": f"{type(error).__name__}: {error}"})

    def answer(self, status: int, value: dict[str, object]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


reward_func.pipeline  # loaded before anybody asks
with ThreadingHTTPServer((options.host, options.port), Handler) as server:
    print(f"http://{options.host}:{server.server_port}/get_reward", flush=True)
    server.serve_forever()
