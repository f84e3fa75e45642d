"""The Grafana dashboards as code: three modules, one for each, over a few builders that keep them alike.

``make dashboards`` writes their JSON into the chart; a test holds the two together. Metrics are those of
`perseus_api.metrics`; nothing of the cluster is known here.
"""
