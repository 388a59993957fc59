"""What sslyze, which knows nothing of Fleetsock, finds at both names of a server: TLS 1.3 only, and nothing weak.

    python3 -m venv scan && scan/bin/pip install sslyze
    scan/bin/python server/tests/attacks/scan.py target/debug/fleetsock-server

Makes a fleet in a folder that is removed afterwards. Prints a line for each name; its exit code is 1 when anything is
not as it should be. Written for sslyze 6.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

DOMAIN = "fleetsock.internal"
OLD = ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2"]
SUITES = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
QUESTIONS = [
    "sslv2", "sslv3", "tlsv1", "tlsv1_1", "tlsv1_2", "elliptic_curves", "compression", "heartbleed", "openssl_ccs",
    "robot", "reneg", "certinfo", "tlsv1_3", "early_data",
]
CURVES = {"X25519", "secp256r1", "prime256v1", "secp384r1"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def scan(address, name, folder):
    told = os.path.join(folder, name + ".json")
    command = [sys.executable, "-W", "ignore", "-m", "sslyze", "--quiet", "--json_out", told]
    # Its verdict on Mozilla's profiles is about the web's CAs, of which ours is none.
    command += ["--sni", name] + [f"--{question}" for question in QUESTIONS] + [address]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    with open(told, encoding="utf-8") as file:
        return json.load(file)["server_scan_results"][0]["scan_result"]


def names(suites):
    return {accepted["cipher_suite"]["name"] for accepted in suites["accepted_cipher_suites"]}


def problems(found, unanswered):
    """What is wrong. What cannot be asked without a certificate of the fleet goes to `unanswered`."""

    def result(question):
        answer = found[question]
        if answer["status"] != "COMPLETED":
            raise ValueError(f"{question}: {answer['status']} {answer.get('error_reason')}")
        return answer["result"]

    for version in OLD:
        if accepted := names(result(version + "_cipher_suites")):
            yield f"{version} is spoken: {accepted}"
    if (accepted := names(result("tls_1_3_cipher_suites"))) != SUITES:
        yield f"other suites: {accepted}"
    if found["tls_1_3_early_data"].get("error_reason") == "CLIENT_CERTIFICATE_NEEDED":
        unanswered.append("early data")
    elif result("tls_1_3_early_data")["supports_early_data"]:
        yield "early data are taken"
    if result("tls_compression")["supports_compression"]:
        yield "it compresses"
    if result("heartbleed")["is_vulnerable_to_heartbleed"]:
        yield "Heartbleed"
    if result("openssl_ccs_injection")["is_vulnerable_to_ccs_injection"]:
        yield "CCS injection"
    if not result("robot")["robot_result"].startswith("NOT_VULNERABLE"):
        yield "RSA key exchange"
    if result("session_renegotiation")["is_vulnerable_to_client_renegotiation_dos"]:
        yield "it renegotiates"
    curves = {curve["name"] for curve in result("elliptic_curves")["supported_curves"]}
    if not curves <= CURVES:
        yield f"other curves: {curves}"
    for chain in result("certificate_info")["certificate_deployments"]:
        leaf = chain["received_certificate_chain"][0]
        if leaf["public_key"]["key_size"] < 256 or leaf["signature_hash_algorithm"]["name"] != "sha256":
            yield f"a weak certificate: {leaf['public_key']}"


def main():
    program = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        state, address = os.path.join(folder, "state"), f"127.0.0.1:{free_port()}"
        init = [program, "init", "--state", state, "--listen", address, "--address", address, "--trust-domain", DOMAIN]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
        quiet = dict(os.environ, FLEETSOCK_LOG="error")
        with subprocess.Popen([program, "serve", "--state", state], env=quiet) as server:
            try:
                while not os.path.exists(os.path.join(state, "admin.sock")):
                    time.sleep(0.05)
                wrong = 0
                for name in ["server." + DOMAIN, "enroll." + DOMAIN]:
                    unanswered = []
                    found = list(problems(scan(address, name, folder), unanswered))
                    wrong += len(found)
                    told = "; ".join(found) or "TLS 1.3 only, nothing weak"
                    rest = f" (not asked without a certificate: {', '.join(unanswered)})" if unanswered else ""
                    print(f"{name}: {told}{rest}")
            finally:
                server.terminate()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
