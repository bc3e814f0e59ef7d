(ns clojars.stream
  "Reading what a client sends to its end."
  (:import [java.io InputStream]))

(defn drain
  "Reads the stream to its end, keeps nothing of it and returns how many bytes it was."
  [^InputStream stream]
  (let [buffer (byte-array 65536)]
    (loop [total 0]
      (let [size (.read stream buffer)]
        (if (neg? size)
          total
          (recur (+ total size)))))))
