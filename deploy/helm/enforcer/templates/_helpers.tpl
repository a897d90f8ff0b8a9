{{- define "enforcer.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "enforcer.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "enforcer.labels" -}}
{{ include "enforcer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "enforcer.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "enforcer.name" .) }}
{{- end }}

{{- define "enforcer.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- /* A number as a person writes it: values come as floating point, and 1e+06 is no argument. */ -}}
{{- define "enforcer.word" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- /* Every flag that has a value. */ -}}
{{- define "enforcer.flags" -}}
{{- range $key, $value := .Values.agent }}
{{- $flag := printf "--%s" (kebabcase $key) }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- {{ $flag }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "%s=%s" $flag (include "enforcer.word" .) | quote }}
{{- end }}
{{- else if not (kindIs "invalid" $value) }}
- {{ printf "%s=%s" $flag (include "enforcer.word" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Where metrics and health are served: an IPv6 address is written in brackets before a port. */ -}}
{{- define "enforcer.bind" -}}
{{- $address := trimAll "[]" .Values.metrics.address -}}
{{ if contains ":" $address }}{{ printf "[%s]" $address }}{{ else }}{{ $address }}{{ end }}
{{- end }}

{{- /* The kubelet asks at the pod's address, which is the node's, unless it is told another one. */ -}}
{{- define "enforcer.probeHost" -}}
{{- $address := trimAll "[]" .Values.metrics.address -}}
{{- if not (has $address (list "::" "0.0.0.0")) -}}
host: {{ $address | quote }}
{{- end }}
{{- end }}

{{- /* How commands from outside find the agents, where that is not the default. */ -}}
{{- define "enforcer.remote" -}}
{{- if ne .Release.Namespace "enforcer-system" }} --agent-namespace {{ .Release.Namespace }}{{ end }}
{{- end }}
