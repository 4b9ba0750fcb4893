;; SPDX-License-Identifier: Apache-2.0
;; component: a component, not a core module; the host must say so clearly.
(component)
