"""Writes helm/files/dashboard.json, the Grafana dashboard: `make chart-dashboard`.

Grafana's JSON says everything forty times; here each panel is what differs. No library is needed."""

import json
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "helm/files/dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Every series of the replicas that are chosen. "All" is `.*`, which also takes what has no such label.
OWN = 'namespace=~"$namespace",pod=~"$pod"'
WIDTH = 24


def rate(metric, *matchers, window="$__rate_interval"):
    return f"rate(sidelens_{metric}{{{','.join([OWN, *matchers])}}}[{window}])"


def gauge(metric, *matchers):
    return f"sidelens_{metric}{{{','.join([OWN, *matchers])}}}"


def total(vector, *labels):
    return f"sum by ({', '.join(labels)}) ({vector})" if labels else f"sum({vector})"


def quantile(q, metric, *labels, matchers=()):
    return f"histogram_quantile({q}, {total(rate(f'{metric}_bucket', *matchers), *labels, 'le')})"


def quantiles(metric, *labels, matchers=()):
    """The usual pair; a legend names the labels that differ."""
    prefix = "".join(f"{{{{{label}}}}} " for label in labels)
    return [(quantile(q, metric, *labels, matchers=matchers), f"{prefix}p{q * 100:g}") for q in (0.5, 0.99)]


def steps(*pairs):
    """Thresholds: green, then each colour from its value on."""
    return {"mode": "absolute", "steps": [{"value": None, "color": "green"}] + [{"value": v, "color": c} for v, c in pairs]}


def graph(title, description, targets, unit="short", *, stacked=False, thresholds=None, soft_max=None, width=8):
    custom = {
        "drawStyle": "line", "lineInterpolation": "linear", "lineWidth": 1, "fillOpacity": 30 if stacked else 8,
        "showPoints": "never", "spanNulls": False, "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
    }
    if soft_max is not None:
        custom["axisSoftMax"] = soft_max
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, description, targets, unit, custom, options, thresholds, (width, 8))


def stat(title, description, expression, unit="short", thresholds=None, *, decimals=None):
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "orientation": "auto",
        "textMode": "auto", "colorMode": "value" if thresholds else "none", "graphMode": "area", "justifyMode": "auto",
        "wideLayout": True, "showPercentChange": False, "percentChangeColorMode": "standard",
    }
    return panel("stat", title, description, [(expression, "")], unit, {}, options, thresholds, (4, 4), decimals)


def heatmap(title, description, expression, unit="short"):
    options = {
        "calculate": False, "cellGap": 1, "cellValues": {"unit": "short"}, "rowsFrame": {"layout": "auto"},
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5, "fill": "blue", "reverse": False},
        "yAxis": {"axisPlacement": "left", "unit": unit}, "legend": {"show": True}, "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "filterValues": {"le": 1e-9}, "exemplars": {"color": "rgba(255,0,255,0.7)"},
    }
    return panel("heatmap", title, description, [(expression, "{{le}}")], unit, {}, options, None, (8, 8))


def panel(kind, title, description, targets, unit, custom, options, thresholds, size, decimals=None):
    defaults = {"unit": unit, "min": 0, "color": {"mode": "palette-classic" if kind != "stat" else "thresholds"}}
    defaults |= {"custom": custom} if custom else {}
    defaults |= {"decimals": decimals} if decimals is not None else {}
    defaults["thresholds"] = thresholds or steps()
    queries = []
    for i, (expression, legend) in enumerate(targets):
        queries.append({
            "refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend or "__auto",
            "range": True, "instant": False, "editorMode": "code", "format": "heatmap" if kind == "heatmap" else "time_series",
        })
    return {
        "type": kind, "title": title, "description": description, "datasource": SOURCE, "targets": queries,
        "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options,
        "gridPos": {"w": size[0], "h": size[1], "x": 0, "y": 0},
    }


SEARCH = 'lane="search"'
REQUESTS = rate("requests_total", 'route="embed"')
SHED = rate("refused_requests_total", 'reason=~"queue_full|deadline|body_room"')
FAILED = rate("items_total", 'outcome!="ok"')
PASSES, PASS_SECONDS = rate("batch_size_count"), rate("inference_seconds_sum")
SEARCH_MEAN = (f"({total(rate('queue_wait_seconds_sum', SEARCH))} + {total(rate('input_compute_seconds_total', SEARCH))}) "
               f"/ ({total(rate('queue_wait_seconds_count', SEARCH))} > 0)")
PLACEHOLDERS = rate("placeholder_vectors_total")
DEAD = rate("fetches_total", 'outcome=~"error|remembered_failure"')
HITS, MISSES = rate("cache_hits_total"), rate("cache_misses_total")

ROWS = {
    "Overview": [
        stat("Ready replicas", "Replicas whose models are warm.", total(gauge("ready")), thresholds={
            "mode": "absolute", "steps": [{"value": None, "color": "red"}, {"value": 1, "color": "green"}]}),
        stat("Requests", "Embedding requests answered a second, refusals included.", total(REQUESTS), "reqps", decimals=1),
        stat("Items", "Texts and pictures answered a second, failures included.", total(rate("items_total")), "cps", decimals=1),
        stat("Refused for lack of room", "Share of embedding requests that found the queue full, the deadline over, or too many "
             "bodies at once. The alert is at 5%.",
             f"{total(SHED)} / ({total(REQUESTS)} > 0)", "percentunit", steps((0.01, "orange"), (0.05, "red")), decimals=1),
        stat("Items without a vector", "Share of items that failed. The objective is 1% at most.",
             f"{total(FAILED)} / ({total(rate('items_total'))} > 0)", "percentunit", steps((0.01, "orange"), (0.06, "red")),
             decimals=1),
        stat("Search waits, p99", "One in a hundred searches waits longer for its pass. Meilisearch gives a search 1.5 s.",
             quantile(0.99, "queue_wait_seconds", matchers=['lane="search"']), "s", steps((0.5, "orange"), (1, "red"))),
    ],
    "Traffic": [
        graph("Requests by status", "Embedding requests answered a second. 429 and 503 are refused (the row Failures says why), 502 and "
              "504 are the pictures' hosts, 500 is our fault, 400 the document's.",
              [(total(REQUESTS, "status") + " > 0", "{{status}}")], "reqps", stacked=True),
        graph("Seconds to answer", "From a request's head to its answer, fetching and waiting included. Meilisearch hangs "
              "up after 30 s, and gives a search (one input) 1.5 s. Lane none: refused before its inputs were counted.",
              quantiles("request_seconds", "lane", matchers=['route="embed"']), "s",
              thresholds=steps((30, "red"))),
        graph("Items by kind", "Texts and pictures answered a second, failures included.",
              [(total(rate("items_total"), "modality"), "{{modality}}")], "cps", stacked=True),
        graph("In the house", "Requests being answered, and inputs admitted and not yet answered.",
              [(total(gauge("requests_in_flight")), "requests"), (total(gauge("items_in_flight")), "inputs")]),
        graph("Requests by key", "Embedding and admin requests with a known key, by its name. Empty without keys.",
              [(total(rate("key_requests_total"), "key"), "{{key}}")], "reqps", stacked=True),
        graph("Other requests", "Probes, scrapes and tools, a second.",
              [(total(rate("requests_total", 'route!="embed"'), "route"), "{{route}}")], "reqps", stacked=True),
    ],
    "Lanes": [
        graph("Search waits", "How long a request of one input waits for its pass. Meilisearch gives a search 1.5 s; the "
              "alert is at 1 s, that of waits and passes together on their mean.",
              [*quantiles("queue_wait_seconds", matchers=['lane="search"']), (SEARCH_MEAN, "wait and pass, mean")], "s",
              thresholds=steps((1, "red"))),
        graph("Bulk waits", "How long an input of indexing waits for its batch. The deadline answers 503 after 25 s; the alert "
              "is at 20 s.", quantiles("queue_wait_seconds", matchers=['lane="bulk"']), "s",
              thresholds=steps((20, "red"))),
        graph("Inputs by lane", "Inputs a second that reached a pass, or waited in vain.",
              [(total(rate("queue_wait_seconds_count"), "lane"), "{{lane}}")], "cps", stacked=True),
        graph("Items in the system", "Waiting or being computed, by Little's law, for each replica: the signal that replicas "
              "are scaled by.",
              [(f"{total(rate('queue_wait_seconds_sum'), 'pod')} + {total(rate('input_compute_seconds_total'), 'pod')}",
                "{{pod}}")], width=12),
        graph("Queue", "Inputs waiting for a batch at the moment of the scrape.",
              [(total(gauge("queue_depth"), "pod"), "{{pod}}")], width=12),
    ],
    "Batches": [
        graph("Inputs of a pass", "Mean inputs of one forward pass. Searches go alone, so texts are few.",
              [(f"{total(rate('batch_size_sum'), 'modality')} / ({total(PASSES, 'modality')} > 0)", "{{modality}}")]),
        graph("Passes", "Forward passes a second.", [(total(PASSES, "modality"), "{{modality}}")], "ops"),
        heatmap("Sizes of batches", "Forward passes a second by inputs. Full batches are the best use of a GPU.",
                total(rate("batch_size_bucket"), "le")),
    ],
    "Device": [
        graph("Seconds of a pass", "One forward pass, its batch as large as it was.",
              quantiles("inference_seconds", "modality"), "s"),
        graph("Passes under way", "Seconds of passes per second. 1 is one engine always busy; on the CPU there are several. "
              "It does not say how full the batches are.", [(total(PASS_SECONDS, "pod"), "{{pod}}")]),
        graph("Seconds of an input", "Computing shared by the inputs of a pass: what an image or a text costs.",
              [(f"{total(PASS_SECONDS, 'modality')} / ({total(rate('batch_size_sum'), 'modality')} > 0)", "{{modality}}")], "s"),
        graph("Batches cut for lack of memory", "Most pictures, or tokens of texts, of a pass since one ran out of device memory; 0 if "
              "none did.",
              [(f"max by (pod, modality) ({gauge('batch_size_cap')})", "{{pod}} {{modality}}")]),
        graph("Device errors", "A second, by kind. oom is a batch that was halved for lack of memory and costs no answer; lost ends "
              "the process; other failed its batch.", [(total(rate("device_errors_total"), "kind"), "{{kind}}")], "cps"),
        graph("Seconds to decode", "One picture from bytes to the model's input, before the device.",
              quantiles("decode_seconds"), "s"),
        graph("Models in service", "Replicas by model. Two fingerprints of one model are a rollout, or a stale replica.",
              [("count by (model, fingerprint, device, dtype, dimensions) (" + gauge("model_info") + ")",
                "{{model}} {{fingerprint}} on {{device}} in {{dtype}}, {{dimensions}} dimensions")], stacked=True, width=24),
    ],
    "Cache": [
        graph("Found", "Share of inputs that needed no computing, by where they were found.",
              [(f"{total(HITS, 'tier')} / on () group_left () ({total(HITS)} + {total(MISSES)} > 0)", "{{tier}}")],
              "percentunit", stacked=True, soft_max=1),
        graph("Lookups", "Inputs a second: found, or to be computed.",
              [(total(HITS, "tier"), "{{tier}}"), (total(MISSES), "computed")], "cps", stacked=True),
        graph("Memory", "Bytes of vectors in memory, up to cache.max_bytes for each replica.",
              [(total(gauge("cache_bytes"), "pod"), "{{pod}}")], "bytes"),
        graph("Seconds of Redis", "One exchange. A lookup over cache.redis.timeout_ms is computed instead. Empty without Redis.",
              quantiles("redis_seconds", "operation"), "s"),
        graph("Faults of Redis", "A second, by kind. None of them fails a request.",
              [(total(rate("redis_errors_total"), "kind"), "{{kind}}")], "cps", stacked=True),
        graph("Without Redis", "Replicas that do not ask Redis, since it is not there or too slow.",
              [(total(gauge("redis_breaker_open")), "replicas")], thresholds=steps((1, "red"))),
    ],
    "Sources": [
        graph("Pictures by address", "A second, by outcome: downloaded (ok), confirmed (not_modified), known and fresh, joined to "
              "a download under way, dead when last asked, failed.",
              [(total(rate("fetches_total"), "outcome"), "{{outcome}}")], "cps", stacked=True),
        graph("Seconds to fetch", "One picture by any address, failed ones included. fetch.timeout_ms cuts off.",
              quantiles("fetch_seconds"), "s", thresholds=steps((8, "red"))),
        graph("Failed and repeated", "Share of pictures by http(s) address that failed or were known to be dead, and of those "
              "asked for twice.",
              [(f"{total(DEAD)} / ({total(rate('fetches_total'))} > 0)", "failed"),
               (f"{total(rate('fetch_retries_total'))} / ({total(rate('fetches_total'))} > 0)", "repeated")], "percentunit"),
    ],
    "Failures": [
        graph("Items by kind of failure", "A second. timeout and host_error are the pictures' hosts, internal is our own, the "
              "others are the documents'. /admin/failures lists them.",
              [(total(FAILED, "outcome") + " > 0 or " + total(FAILED) + " == 0", "{{outcome}}")], "cps", stacked=True),
        graph("Items without a vector", "Share of items that failed, of texts and of pictures. The objective is 1% at most.",
              [(f"{total(FAILED, 'modality')} / ({total(rate('items_total'), 'modality')} > 0)", "{{modality}}")],
              "percentunit", thresholds=steps((0.01, "orange"), (0.06, "red"))),
        graph("Answers that lack something", "A second: placeholder vectors by what the items failed with, and texts cut to the "
              "model's length.",
              [(total(PLACEHOLDERS, "kind") + " > 0 or " + total(PLACEHOLDERS) + " == 0", "placeholders {{kind}}"),
               (total(rate("truncated_texts_total")), "cut texts")], "cps"),
        graph("Refused by reason", "Share of embedding requests answered 429 (queue_full, rate_limit) or 503 (the others). The alert "
              "is at 5% for queue_full, deadline and body_room together.",
              [(f"{total(rate('refused_requests_total'), 'reason')} / on () group_left () ({total(REQUESTS)} > 0)",
                "{{reason}}")], "percentunit", stacked=True, thresholds=steps((0.05, "red"))),
        graph("Starts", "Processes that began anew in their pod within the hour. A new pod is none of them.",
              [(total(f'resets(sidelens_requests_total{{{OWN},route="metrics",status="200"}}[1h])', "pod"), "{{pod}}")]),
        graph("Processes lost over pictures", "Of those that decode AVIF, and WebP that may take much memory, within the hour. Each "
              "costs one picture at most.",
              [(total(f"increase(sidelens_decode_workers_lost_total{{{OWN}}}[1h])", "pod"), "{{pod}}")], thresholds=steps((1, "red"))),
        graph("Changed files", "Keys and certificates within the hour, taken or refused.",
              [(total(f"increase(sidelens_reloads_total{{{OWN}}}[1h])", "files", "outcome"), "{{files}} {{outcome}}")], width=12),
        graph("Files in force", "1 where keys and certificates are as on disk, 0 where a replica refused their last change.",
              [(f"min by (files) ({gauge('last_reload_successful')})", "{{files}}")], width=12),
    ],
}


def variable(name, label, query):
    return {
        "type": "query", "name": name, "label": label, "datasource": SOURCE,
        "query": {"query": query, "refId": name, "qryType": 1}, "refresh": 2, "sort": 1, "regex": "", "hide": 0,
        "multi": True, "includeAll": True, "allValue": ".*", "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def layout():
    panels, y = [], 0
    for title, members in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"w": WIDTH, "h": 1, "x": 0, "y": y}})
        x, y = 0, y + 1
        for member in members:
            grid = member["gridPos"]
            if x + grid["w"] > WIDTH:
                x, y = 0, y + grid["h"]
            panels.append(member | {"gridPos": grid | {"x": x, "y": y}})
            x += grid["w"]
        y += members[-1]["gridPos"]["h"]
    return [{"id": i} | each for i, each in enumerate(panels, 1)]


def dashboard():
    return {
        "uid": "sidelens", "title": "Sidelens", "description": "Image and text vectors for Meilisearch.", "tags": ["sidelens"],
        "schemaVersion": 39, "version": 1, "editable": True, "graphTooltip": 1, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"}, "fiscalYearStartMonth": 0, "liveNow": False, "weekStart": "",
        "annotations": {"list": []},
        "links": [{
            "title": "Runbook", "url": "https://github.com/sidelens/sidelens/blob/main/docs/runbook.md", "type": "link",
            "icon": "doc", "tags": [], "tooltip": "", "asDropdown": False, "targetBlank": True, "includeVars": False,
            "keepTime": False,
        }],
        "templating": {"list": [
            {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "refresh": 1, "regex": "",
             "hide": 0, "multi": False, "includeAll": False, "options": []},
            variable("namespace", "Namespace", "label_values(sidelens_ready, namespace)"),
            variable("pod", "Pod", 'label_values(sidelens_ready{namespace=~"$namespace"}, pod)'),
        ]},
        "panels": layout(),
    }


def text():
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(text())
    print(f"wrote {PATH.name}")
